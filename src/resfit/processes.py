"""Child processes that don't outlive their parent, a fair share of the cores for each, and those of torchrun."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any


def start(work: Callable[..., None], *arguments: Any, share: int = 1) -> BaseProcess:
    """A new process that calls `work`, with 1/`share` of the cores for torch's threads on the CPU.

    Ctrl-C on the terminal reaches the parent alone; it says what becomes of its children (`interrupt`).
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(work, arguments, share), daemon=True, name="resfit"
    )
    with _interrupts_later():
        process.start()
    return process


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """SIGINT waits till the block's end, and in a child that begins here until it lets it in.

    Of a process's threads any may get it; Python's handler, which is the main thread's, waits as well.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # to begin it would let SIGINT through again
    before, heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}), list[int]()
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number)) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)  # None: not one of Python's
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def interrupt(processes: Iterable[BaseProcess]) -> None:
    """Ask for an end as Ctrl-C does, and wait for it: a run keeps what it has."""
    alive = [process for process in processes if process.is_alive() and process.pid]
    for process in alive:
        os.kill(process.pid or 0, signal.SIGINT)
    for process in alive:
        process.join()


def under_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _child(work: Callable[..., None], arguments: tuple[Any, ...], share: int) -> None:
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    if share > 1:
        torch.set_num_threads(max(1, cores() // share))
    try:
        if hasattr(signal, "pthread_sigmask"):  # what came while Python and torch were loaded ends it here
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work(*arguments)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
