"""The two ways in which a command ends early, each with one line for the user."""

from __future__ import annotations

from pathlib import Path


class ResfitError(Exception):
    """A failure that the user is told in one line: what is wrong (where): what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class BadInput(ResfitError, ValueError):
    """What the user gave cannot be used: a spec, recipe, option, data set or file."""

    exit_code = 2


def unreadable(what: str, file: Path, error: OSError) -> BadInput:
    """The error of a file that is there and cannot be read, which says nothing of what is in it."""
    return BadInput(f"cannot read the {what} ({file}, {_reason(error)}): check the path and its permissions")


def unusable(error: OSError) -> BadInput:
    """The error of a path that the system refuses."""
    return BadInput(f"cannot use {error.filename} ({_reason(error)}): check the path and its permissions")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


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


def sendable(error: Exception) -> ResfitError:
    """What of an error another process is told: one of the two kinds that commands end with."""
    if isinstance(error, BadInput):
        return BadInput(str(error))
    return RunFailed(str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}")
