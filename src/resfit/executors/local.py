"""Run on this machine: sequentially in this process, or in parallel in child processes."""

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
from typing import Any, Protocol

from resfit import processes
from resfit.checkpoint import has_state
from resfit.device import pick_device, spread
from resfit.errors import RunFailed, sendable
from resfit.interrupt import interrupt_behind
from resfit.observer import Observer, Relay
from resfit.recipe import Recipe
from resfit.record import RunRecord, is_finished, read_record
from resfit.run import run_folder, train


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run needs besides recipe and seed: output folder, data folder, whether downloads are forbidden.

    `init` is a trained network whose weights every run starts from.
    """

    out: Path
    data_dir: Path | None = None
    offline: bool = False
    init: str | None = None

    def train(self, recipe: Recipe, seed: int, *, device: str, observer: Observer) -> RunRecord:
        """Train, or resume if the run's folder holds a checkpoint of an unfinished run.

        A run that another process has finished meanwhile is not repeated.
        """
        folder = run_folder(self.out, recipe, seed)
        if is_finished(folder):
            return read_record(folder)
        resume = has_state(folder)
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
    """Accepts runs and returns futures of their records. Use it in a `with` block; leaving it stops running jobs."""

    options: RunOptions

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """Submit a run; the future gives its record, or the exception of a failed run."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_executor(options: RunOptions, *, workers: int | None = None, device: str = "auto") -> Executor:
    """Return an executor with `workers` processes spread over the devices; default: one per CUDA device, one on CPU."""
    pick_device(device)
    devices = spread(device, workers)
    return InProcess(options, devices[0]) if len(devices) == 1 else Processes(options, devices)


class InProcess:
    """Executor that trains each run at once, in this process."""

    def __init__(self, options: RunOptions, device: str) -> None:
        self.options, self.device = options, device

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """Train now and return a finished future."""
        future: Future[RunRecord] = Future()
        try:
            future.set_result(self.options.train(recipe, seed, device=self.device, observer=observer))
        except Exception as error:
            if interrupt := interrupt_behind(error):
                raise interrupt from None
            future.set_exception(sendable(error))
        return future

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Processes:
    """Executor that trains each run in its own process, at most one at a time per entry of `devices`.

    A killed process only fails its own run. Observers receive epochs and messages, from threads.
    """

    def __init__(self, options: RunOptions, devices: list[str]) -> None:
        self.options, self.share = options, len(devices)
        self.free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in devices:
            self.free.put(device)
        self.threads = ThreadPoolExecutor(len(devices))
        self.running: set[BaseProcess] = set()
        self.closing = False
        self.beginning = threading.Lock()  # starting and registering a process is atomic with respect to closing

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """Train as soon as a device is free."""
        return self.threads.submit(self._run, recipe, seed, observer)

    def _run(self, recipe: Recipe, seed: int, observer: Observer) -> RunRecord:
        device = self.free.get()
        try:
            hears, tells = Pipe(duplex=False)
            with hears, tells:
                process = self._begun(recipe, seed, device, tells)
                tells.close()  # only the child's copy stays open, so that EOF is received when the child ends
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
            raise RunFailed(
                f"the run's process ended with status {process.exitcode}: run the same command again to continue"
            )
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
    """Pass the child's events to the observer until the child ends; return the exception that it sent, if any."""
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
    """Train in a child process."""
    try:
        options.train(recipe, seed, device=device, observer=_Teller(tells))
    except Exception as error:
        if interrupt := interrupt_behind(error):
            raise interrupt from None
        tells.send(("failed", sendable(error)))


class _Teller(Relay):
    """Observer in a child process that sends epochs and messages to the parent."""

    def __init__(self, tells: Connection) -> None:
        self.tells = tells

    def forward(self, name: str, *arguments: Any) -> None:
        """Send the callback, if it is one of these."""
        if name in ("epoch_ended", "message"):
            self.tells.send((name, *arguments))
