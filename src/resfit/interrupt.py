"""SIGINT and SIGTERM between two steps of long work: a run, a study, a search."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal ended the work between two steps, and what was done is saved. `exit_code` is 130 or 143."""

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name}): {advice}")
        self.exit_code = 128 + number


class Interrupts:
    """Within its block the first SIGINT or SIGTERM waits for the work to look; the second ends the process at once.

    The work looks at `asked` between its steps, saves, and then raises Interrupted. Blocks may lie in each other: the
    innermost hears the signal. Outside the main thread, where Python handles no signals, nothing is ever asked.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # as a shell has it for jobs in the background
                    self._before[number] = signal.signal(number, self._ask) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        for each in self._before:  # the system's own handling ends the process even within a long call
            signal.signal(each, signal.SIG_DFL)


class Interruptible(Interrupts):
    """Within its block the first SIGINT or SIGTERM raises Interrupted, which tells the user `advice`.

    For work that leads other work, and ends it in order while the exception passes. A run within the block hears the
    signal itself, finishes its step and saves; the advice is then this block's all the same.
    """

    def __init__(self, advice: str) -> None:
        super().__init__()
        self.advice = advice

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            code = error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
            raise Interrupted(code - 128, self.advice) from None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        super()._ask(number, frame)
        raise Interrupted(number, self.advice)
