"""The first signal waits for the work, the second ends it at once; both leave the shell's exit status."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest

from resfit.interrupt import Interrupted, Interruptible, Interrupts, interrupt_behind

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_until_the_work_looks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.asked is None
        signal.raise_signal(number)
        assert interrupts.asked == number
    interrupted = Interrupted(number, "go on there")
    assert (str(interrupted), interrupted.exit_code) == (f"interrupted ({number.name}): go on there", 128 + number)
    assert signal.getsignal(number) == before


def test_the_innermost_block_hears_the_signal_and_the_outer_one_comes_back() -> None:
    with Interrupts() as study:
        with Interrupts() as run:
            signal.raise_signal(signal.SIGINT)
            assert run.asked == signal.SIGINT
        assert study.asked is None
        signal.raise_signal(signal.SIGTERM)
        assert study.asked == signal.SIGTERM


@pytest.mark.parametrize("number", SIGNALS)
def test_work_that_leads_others_is_broken_off(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r": lead on$") as caught, Interruptible("lead on"):
        signal.raise_signal(number)
        pytest.fail("the signal ends the block")
    assert (caught.value.exit_code, signal.getsignal(number)) == (128 + number, before)
    with pytest.raises(Interrupted, match=r": lead on$") as caught, Interruptible("lead on"), Interrupts() as run:
        signal.raise_signal(number)
        assert run.asked == number  # a run within hears it, and stops where it likes
        raise Interrupted(number, "resume the run")
    assert (caught.value.exit_code, signal.getsignal(number)) == (128 + number, before)
    with pytest.raises(ValueError, match="another"), Interruptible("lead on"):
        raise ValueError("another error passes")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.asked is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_works_without_signals() -> None:
    asked: list[object] = []

    def work() -> None:
        with Interrupts() as interrupts:
            asked.append(interrupts.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [None]


class _Pressing:
    """Ctrl-C while a class is made, as in a module that is being imported."""

    def __set_name__(self, owner: type, name: str) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_while_a_class_is_made_is_one_too() -> None:
    """Before Python 3.12, that raises a RuntimeError."""
    with pytest.raises(Interrupted, match="go on") as caught, Interruptible("go on"):

        class _Made:
            pressing = _Pressing()

    assert caught.value.exit_code == 130


def test_other_errors_are_no_interrupts() -> None:
    interrupt, other = KeyboardInterrupt(), RuntimeError("other")
    other.__context__ = interrupt  # while it was handled
    assert interrupt_behind(interrupt) is interrupt
    assert interrupt_behind(other) is interrupt_behind(ValueError()) is interrupt_behind(None) is None


def _never_looks(ready: Connection) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interrupts() as interrupts:
        ready.send("begun")
        while interrupts.asked is None:
            time.sleep(0.01)
        ready.send("asked")
        time.sleep(60)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_never_looks, args=(theirs,))
    process.start()
    try:
        assert ours.recv() == "begun"
        os.kill(process.pid, number)
        assert ours.recv() == "asked"
        assert process.is_alive()
        os.kill(process.pid, number)
        process.join(20)
        assert process.exitcode == -number  # a shell says 130 or 143
    finally:
        process.kill()


def test_the_first_signal_shows_the_terminals_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar hides it, and the second signal ends the process without putting it back."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, Interrupts():
        monkeypatch.setattr("sys.stderr", terminal)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.undo()
        assert os.read(ours, 100) == b"\x1b[?25h"
    os.close(ours)
