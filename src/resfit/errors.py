"""The two ways in which a command ends early, each with one line for the user."""


class ResfitError(Exception):
    """A failure that the user is told in one line: what is wrong (where): what to do."""

    exit_code = 1


class BadInput(ResfitError, ValueError):
    """What the user gave cannot be used: a spec, recipe, option, data set or file."""

    exit_code = 2


class RunFailed(ResfitError, RuntimeError):
    """A run that began could not go on: a loss that is not finite, a full disk."""
