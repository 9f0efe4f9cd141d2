"""The two ways in which a command ends early, each with one line for the user."""

from __future__ import annotations


class ResfitError(Exception):
    """A failure that the user is told in one line: what is wrong (where): what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class BadInput(ResfitError, ValueError):
    """What the user gave cannot be used: a spec, recipe, option, data set or file."""

    exit_code = 2


class BadField(BadInput):
    """A field whose value is not allowed."""

    def __init__(self, problem: str, field: str, advice: str) -> None:
        super().__init__(f"{problem} ({field}): {advice}")
        self.problem, self.field, self.advice = problem, field, advice

    def inside(self, path: str) -> BadField:
        """The same, of a field within the object at `path`."""
        return BadField(self.problem, f"{path}.{self.field}" if path else self.field, self.advice)


class RunFailed(ResfitError, RuntimeError):
    """A run that began could not go on: a loss that is not finite, a full disk."""


class Diverged(RunFailed):
    """A loss or a weight is no longer finite."""
