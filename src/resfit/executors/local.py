"""Runs on this machine: in this process one after the other, or in several of their own."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Protocol

from resfit import processes
from resfit.checkpoint import has_state
from resfit.device import pick_device, spread
from resfit.errors import RunFailed, sendable
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record
from resfit.run import run_folder, train


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run needs besides recipe and seed: where its folder goes, where the data lies, whether to download it.

    `init` is a trained network whose weights every run begins with.
    """

    out: Path
    data_dir: Path | None = None
    offline: bool = False
    init: str | None = None

    def train(self, recipe: Recipe, seed: int, *, device: str, observer: Observer) -> RunRecord:
        """Train, or go on where an unfinished run of the same folder stopped."""
        resume = has_state(run_folder(self.out, recipe, seed))
        return train(
            recipe,
            seed=seed,
            data_dir=self.data_dir,
            out=self.out,
            device=device,
            offline=self.offline,
            resume=resume,
            init=None if resume else self.init,
            observer=observer,
        )


class Executor(Protocol):
    """Takes runs and gives each one's record in time. To be used in a `with` block, whose end stops what goes on."""

    options: RunOptions

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """The record to come; a run that fails leaves its exception there."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_executor(options: RunOptions, *, workers: int | None = None, device: str = "auto") -> Executor:
    """As many processes as `workers` says, spread over the devices: by default one a CUDA device, on the CPU one."""
    pick_device(device)
    devices = spread(device, workers)
    return InProcess(options, devices[0]) if len(devices) == 1 else Processes(options, devices)


class InProcess:
    """One run after the other, here."""

    def __init__(self, options: RunOptions, device: str) -> None:
        self.options, self.device = options, device

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """Train now."""
        future: Future[RunRecord] = Future()
        try:
            future.set_result(self.options.train(recipe, seed, device=self.device, observer=observer))
        except Exception as error:
            future.set_exception(sendable(error))
        return future

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Processes:
    """Each run in a process of its own, at most one at a time for each entry of `devices`.

    A process that is killed is a failed run, and no more. Observers hear of epochs and messages, from threads.
    """

    def __init__(self, options: RunOptions, devices: list[str]) -> None:
        self.options, self.share = options, len(devices)
        self.free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in devices:
            self.free.put(device)
        self.threads = ThreadPoolExecutor(len(devices))
        self.running: set[BaseProcess] = set()
        self.closing = False
        self.beginning = threading.Lock()  # a process begins and is noted down, or none begins any more

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """Train as soon as a device is free."""
        return self.threads.submit(self._run, recipe, seed, observer)

    def _run(self, recipe: Recipe, seed: int, observer: Observer) -> RunRecord:
        device = self.free.get()
        try:
            hears, tells = Pipe(duplex=False)
            with hears, tells:
                process = self._begun(recipe, seed, device, tells)
                tells.close()  # the child's copy alone is open: its end is heard
                failure = _relay(hears, observer)
            process.join()
            self.running.discard(process)
        finally:
            self.free.put(device)
        if failure is not None:
            raise failure
        if process.exitcode != 0 and self.closing:
            raise CancelledError
        if process.exitcode:
            raise RunFailed(f"the run's process ended with status {process.exitcode}: repeat the command to go on")
        return read_record(run_folder(self.options.out, recipe, seed))

    def _begun(self, recipe: Recipe, seed: int, device: str, tells: Connection) -> BaseProcess:
        with self.beginning:
            if self.closing:
                raise CancelledError
            process = processes.start(_train, self.options, recipe, seed, device, tells, share=self.share)
            self.running.add(process)
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        with self.beginning:
            self.closing = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        processes.interrupt(list(self.running))
        self.threads.shutdown()


def _relay(hears: Connection, observer: Observer) -> Exception | None:
    """Pass on what the child tells until it ends; the exception that it ended with."""
    failure: Exception | None = None
    while True:
        try:
            what, value = hears.recv()
        except EOFError:
            return failure
        if what == "failed":
            failure = value
        else:
            getattr(observer, what)(value)


def _train(options: RunOptions, recipe: Recipe, seed: int, device: str, tells: Connection) -> None:
    """A child's work."""
    try:
        options.train(recipe, seed, device=device, observer=_Teller(tells))
    except Exception as error:
        tells.send(("failed", sendable(error)))


class _Teller(Observer):
    """Sends what a run tells to the parent."""

    def __init__(self, tells: Connection) -> None:
        self.tells = tells

    def epoch_ended(self, point: EpochPoint) -> None:
        """Sent on."""
        self.tells.send(("epoch_ended", point))

    def message(self, text: str) -> None:
        """Sent on."""
        self.tells.send(("message", text))
