"""Processes that believe torchrun started them. They come from a server that has torch in memory already."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from helpers.killing import CONTEXT

_SECONDS = 240  # a test that hangs ends


def together(work: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Any]:
    """What work(*arguments) gives in each of `count` processes; where one ended without a word, its exit code."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [_start(work, arguments, rank, count, store.port) for rank in range(count)]
    try:
        return [_heard(process, words) for process, words in started]
    finally:
        for process, _ in started:
            process.kill()


def _start(work: Callable[..., Any], arguments: tuple[Any, ...], rank: int, count: int, port: int) -> tuple[Any, Any]:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_child, args=(theirs, work, arguments, rank, count, port))
    process.start()
    theirs.close()
    return process, ours


def _heard(process: Any, words: Connection) -> Any:
    with contextlib.suppress(EOFError):
        if words.poll(_SECONDS):
            return torch.load(io.BytesIO(words.recv_bytes()), weights_only=False)
    process.join(1)
    return process.exitcode


def _child(
    words: Connection, work: Callable[..., Any], arguments: tuple[Any, ...], rank: int, count: int, port: int
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    for name, value in {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
    }.items():
        os.environ[name] = str(value)
    buffer = io.BytesIO()
    torch.save(work(*arguments), buffer)  # a pipe of processes would share tensors' memory, which ends with this one
    words.send_bytes(buffer.getvalue())


def command(arguments: list[str]) -> tuple[int, str, str]:
    """The exit status of a resfit command, and what it printed as output and as errors."""
    from resfit.cli import main

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(arguments)
    return status, out.getvalue(), errors.getvalue()
