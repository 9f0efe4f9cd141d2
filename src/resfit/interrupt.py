"""Handle SIGINT and SIGTERM between two steps of long work: a run, a study or a search."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stopped the work between two steps and its state is saved; `exit_code` is 130 or 143."""

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name}): {advice}")
        self.exit_code = 128 + number


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the KeyboardInterrupt that an exception is or directly comes from, or None.

    Before Python 3.12, one raised while a class is made, as in a module that is being imported, becomes a RuntimeError.
    """
    found = error.__cause__ if isinstance(error, RuntimeError) else error
    return found if isinstance(found, KeyboardInterrupt) else None


class Interrupts:
    """Within the block, the first SIGINT or SIGTERM only sets `asked`; the second ends the process immediately.

    The work checks `asked` between its steps, saves, and then raises Interrupted. Blocks can be nested: the innermost
    receives the signal. Outside the main thread, where Python handles no signals, `asked` stays None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # ignored in a shell's background jobs: keep it so
                    self._before[number] = signal.signal(number, self._ask) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h")  # a progress bar hides the cursor, and may not end in order
        for each in self._before:  # the default handler ends the process even within a long call
            signal.signal(each, signal.SIG_DFL)


class Interruptible(Interrupts):
    """Within the block, the first SIGINT or SIGTERM raises Interrupted with `advice` for the user.

    For work that controls other work and stops it cleanly while the exception propagates. A run inside the block
    receives the signal itself, finishes its step and saves; the advice shown is still this block's.
    """

    def __init__(self, advice: str) -> None:
        super().__init__()
        self.advice = advice

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if interrupt := interrupt_behind(error):
            code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 128 + signal.SIGINT
            raise Interrupted(code - 128, self.advice) from None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        super()._ask(number, frame)
        raise Interrupted(number, self.advice)
