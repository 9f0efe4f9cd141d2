"""Exceptions that end a command with a one-line message: BadInput (exit code 2) and RunFailed (exit code 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ResfitError(Exception):
    """An error reported to the user in one line: what is wrong (where): what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class BadInput(ResfitError, ValueError):
    """Unusable input: a spec, recipe, option, data set or file."""

    exit_code = 2


@contextmanager
def named(where: str | Path) -> Iterator[None]:
    """Prepend `where`, such as a file, to the message of each BadInput that is raised in the block."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def unreadable(what: str, file: Path, error: OSError) -> BadInput:
    """Return the error for a file that exists but cannot be read, whatever its content."""
    return BadInput(f"cannot read the {what} ({file}, {_reason(error)}): check the path and its permissions")


def unusable(error: OSError) -> BadInput:
    """Return the error for a path that the operating system refuses."""
    return BadInput(f"cannot use {error.filename} ({_reason(error)}): check the path and its permissions")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class BadField(BadInput):
    """A field whose value is not allowed."""

    def __init__(self, problem: str, field: str, advice: str) -> None:
        super().__init__(f"{problem} ({field}): {advice}")
        self.problem, self.field, self.advice = problem, field, advice

    def inside(self, path: str) -> BadField:
        """Return the same error with `path` prepended to the field."""
        return BadField(self.problem, f"{path}.{self.field}" if path else self.field, self.advice)


class RunFailed(ResfitError, RuntimeError):
    """A run failed after it started, for example because of a non-finite loss or a full disk."""


class Diverged(RunFailed):
    """A loss or a weight is no longer finite."""


def sendable(error: Exception) -> ResfitError:
    """Convert an error to BadInput or RunFailed, which can be pickled and sent to another process."""
    if isinstance(error, BadInput):
        return BadInput(str(error))
    return RunFailed(str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}")
