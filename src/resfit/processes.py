"""Child processes that end with their parent and share the CPU cores; detection of torchrun."""

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

from resfit.interrupt import interrupt_behind
from resfit.machine import cores


def start(work: Callable[..., None], *arguments: Any, share: int = 1) -> BaseProcess:
    """Start a new process that calls `work`, with 1/`share` of the cores for torch's CPU threads.

    Ctrl-C in the terminal reaches only the parent, which decides when to interrupt its children (`interrupt`).
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(work, arguments, share), daemon=True, name="resfit"
    )
    with _interrupts_later():
        process.start()
    return process


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Defer SIGINT to the end of the block; a child started in the block has it blocked until it unblocks it.

    The kernel may deliver SIGINT to any thread, so Python's handler, which runs in the main thread, is deferred too.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock SIGINT
    before, heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}), list[int]()
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number)) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)  # None: the handler was not set by Python
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def interrupt(processes: Iterable[BaseProcess]) -> None:
    """Send SIGINT to the processes, as Ctrl-C does, and wait until they end; runs save their state first."""
    alive = [process for process in processes if process.is_alive() and process.pid]
    for process in alive:
        os.kill(process.pid or 0, signal.SIGINT)
    for process in alive:
        process.join()


def under_torchrun() -> bool:
    """Return whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _child(work: Callable[..., None], arguments: tuple[Any, ...], share: int) -> None:
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    if share > 1:
        torch.set_num_threads(max(1, cores() // share))
    try:
        if hasattr(signal, "pthread_sigmask"):  # a SIGINT received while torch was imported takes effect here
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work(*arguments)
    except (KeyboardInterrupt, RuntimeError) as error:
        if interrupt_behind(error):
            raise SystemExit(130) from None
        raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
