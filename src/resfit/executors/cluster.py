"""Runs on a Ray cluster: data goes there once a node, records and weights come back into run folders here.

Ray chooses the node, and begins a run anew whose node or process is lost. One thread hands the runs to Ray and hears
what they tell; a few others write down what they leave.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from resfit.checkpoint import PREVIOUS, STATE, has_state
from resfit.data import Dataset, Images, load_dataset
from resfit.errors import BadInput, ResfitError, sendable
from resfit.executors.local import RunOptions
from resfit.files import claimed, write_atomic
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record
from resfit.run import run_folder, train, validation_curve
from resfit.version import __version__

try:
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise BadInput("Ray is not installed (--ray): pip install 'resfit[ray]'") from None

_PAUSE = 0.2  # seconds between two looks at the runs, where nothing ends
_KNOCK = 10.0  # seconds that a cluster has to answer
_IN_FLIGHT = 1000  # runs that are handed to Ray at a time: more than a cluster holds, fewer than burden it
_RETRIES = 5  # times that a run begins anew because its node or process was lost
_TAKERS = 8  # runs whose folders come home at the same time
_PARTS = ("train", "val", "test")


class Lost(ResfitError):
    """The cluster is gone, or the node of a run time after time: no fault of the run's, which can be repeated."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a run asks a node for: CPU cores, which are its threads, and GPUs, of which 0.5 is half of one."""

    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """The device that a run computes on."""
        return "cuda" if self.gpus else "cpu"

    def fits(self, node: dict[str, float]) -> int:
        """How many runs a node of such resources holds at a time."""
        by_cpus = int(node.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(node.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else by_cpus


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a node is sent for a run, besides the data. `files` are the state that it goes on from."""

    number: int
    recipe: Recipe
    seed: int
    device: str
    threads: int
    whole: bool  # a run with a folder and a test score, or its validation curve alone
    data_dir: Path | None
    init: str | None
    files: dict[str, bytes]
    command: tuple[str, ...]
    version: str = __version__


@dataclass(eq=False, kw_only=True)
class _Run:
    """A run that was submitted, as it is known here. `take` makes the result of what its node sent."""

    recipe: Recipe
    seed: int
    folder: Path
    observer: Observer
    whole: bool
    take: Callable[[Any], Any]
    future: Future[Any] = field(default_factory=Future)
    ref: Any = None


class OnRay:
    """Runs on a Ray cluster, each with its share of a node; an executor.

    `address` is a cluster's, "auto" for the one that this machine belongs to, or "local" for one that is made here,
    listens on 127.0.0.1 alone, and ends with the block. `cpus` and `gpus` are what a run asks for: without them a GPU
    and a core where the cluster has GPUs, and else as many cores as its smallest node has. At most `workers` runs go on
    at a time, by default as many as fit. An observer hears of begin, epochs and messages, and ends its run by raising
    an exception. Entering the block, which is done once, raises BadInput where there is no cluster, or where none of
    its nodes has that much.
    """

    def __init__(
        self,
        options: RunOptions,
        address: str,
        *,
        cpus: int | None = None,
        gpus: float | None = None,
        device: str = "auto",
        workers: int | None = None,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise BadInput(f"on Ray a run takes the GPU that it is given (--device {device}): give auto, cpu or cuda")
        self.options, self.address, self.most = options, address, workers or _IN_FLIGHT
        self.wanted = (cpus, gpus, device)
        self.numbers = itertools.count()
        self.waiting: deque[_Run] = deque()
        self.running: dict[int, _Run] = {}
        self.data: dict[str, Any] = {}  # references, by what was loaded
        self.closing = threading.Event()
        self.takers = ThreadPoolExecutor(_TAKERS)
        self.lost: Lost | None = None

    def __enter__(self) -> OnRay:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))  # Ray tells of lost nodes on standard output
            if _join(self.address):
                stack.callback(ray.shutdown)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.share = _share(nodes, *self.wanted)
            self.slots = min(self.most, sum(self.share.fits(node) for node in nodes))
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
            self.work = ray.remote(_on_node).options(
                num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_retries=_RETRIES, name="resfit"
            )
            self.thread = threading.Thread(target=self._follow, daemon=True, name="resfit-ray")
            self.thread.start()
            self.open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self.open:
            self.closing.set()
            self.thread.join()
            self.takers.shutdown()  # what has ended comes home, also after Ctrl-C
            for run in self.running.values():
                ray.cancel(run.ref)
            self._give_up()

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """The record to come of a run, whose folder lies here by then."""
        folder = run_folder(self.options.out, recipe, seed)

        def take(files: dict[str, bytes]) -> RunRecord:
            return _bring_home(files, folder)

        return self._submit(_Run(recipe=recipe, seed=seed, folder=folder, observer=observer, whole=True, take=take))

    def validation_curve(self, recipe: Recipe, seed: int, observer: Observer) -> tuple[EpochPoint, ...]:
        """The validation curve of a run, as `resfit.run.validation_curve` returns it, when it is there."""
        run = _Run(recipe=recipe, seed=seed, folder=Path(), observer=observer, whole=False, take=tuple)
        curve: tuple[EpochPoint, ...] = self._submit(run).result()
        return curve

    def _submit(self, run: _Run) -> Future[Any]:
        self.waiting.append(run)
        if self.lost or self.closing.is_set():
            self._give_up()
        return run.future

    def _follow(self) -> None:
        """The thread's work."""
        try:
            while not self.closing.is_set():
                self._begin_waiting()
                self._look()
        except Exception as error:  # of Ray's many kinds, and a queue that is gone
            reason = " ".join(str(error).split())[:200]
            self.lost = Lost(f"the Ray cluster is lost ({type(error).__name__}: {reason}): repeat the command")
            self._give_up()

    def _begin_waiting(self) -> None:
        """Hand over to Ray what may go on now."""
        while self.waiting and len(self.running) < self.most and not self.closing.is_set():
            run, number = self.waiting.popleft(), next(self.numbers)
            try:
                run.ref = self.work.remote(self._shipped(run.recipe), self._task(run, number), self.queue)
            except Exception as error:  # data that cannot be used, or is too large for the cluster
                run.future.set_exception(sendable(error))
            else:
                self.running[number] = run

    def _look(self) -> None:
        """Wait a little, pass on what was told since, and take what ended."""
        if not self.running:
            self.closing.wait(_PAUSE)
            return
        ended, _ = ray.wait([run.ref for run in self.running.values()], timeout=_PAUSE)
        for number, what, value in self.queue.get_nowait_batch(self.queue.size()):
            if run := self.running.get(number):
                self._pass_on(number, run, what, value)
        for number in [number for number, run in self.running.items() if run.ref in ended]:
            self.takers.submit(_take, self.running.pop(number))

    def _pass_on(self, number: int, run: _Run, what: str, value: Any) -> None:
        try:
            if what == "started":
                data = _as_dataset(ray.get(self._shipped(run.recipe)))
                run.observer.started(run.recipe, data, run.folder, value)
            else:
                getattr(run.observer, what)(value)
        except Exception as error:  # as a search ends a hopeless trial
            del self.running[number]
            ray.cancel(run.ref)
            run.future.set_exception(error)

    def _task(self, run: _Run, number: int) -> _Task:
        unfinished = run.whole and has_state(run.folder)
        files = [run.folder / name for name in (STATE, PREVIOUS)] if unfinished else []
        data_dir, init = self.options.data_dir, self.options.init
        return _Task(
            number=number,
            recipe=run.recipe,
            seed=run.seed,
            device=self.share.device,
            threads=self.share.cpus,
            whole=run.whole,
            data_dir=None if data_dir is None else data_dir.resolve(),
            init=None if init is None or unfinished else str(Path(init).resolve()),
            files={path.name: path.read_bytes() for path in files if path.exists()},
            command=tuple(sys.argv),
        )

    def _shipped(self, recipe: Recipe) -> Any:
        """A reference to the data of a recipe, which every node fetches at most once; loaded here at first use."""
        size, channels = recipe.spec.input.size, recipe.spec.input.channels
        key = f"{recipe.data}, {size}, {channels}"
        if key not in self.data:
            options = self.options
            data = load_dataset(
                recipe.data, size=size, channels=channels, data_dir=options.data_dir, offline=options.offline
            )
            self.data[key] = ray.put(_as_arrays(data))
        return self.data[key]

    def _give_up(self) -> None:
        """End all runs that have not ended."""
        runs = [*self.running.values(), *self.waiting]
        self.running.clear()
        self.waiting.clear()
        for run in runs:
            if self.lost:
                run.future.set_exception(self.lost)
            else:
                run.future.cancel()


def _join(address: str) -> bool:
    """Join the cluster; False where this process belongs to one already."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which a new cluster would send to Ray's makers
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with _loopback() if address == "local" else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"no Ray cluster can be joined (--ray {address}; {reason}): begin one with ray start --head, or give local"
        ) from None
    return True


@contextmanager
def _loopback() -> Iterator[None]:
    """A cluster that begins in the block listens on 127.0.0.1 alone, as Ray has it on macOS and Windows."""
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _share(nodes: list[dict[str, float]], cpus: int | None, gpus: float | None, device: str) -> Share:
    """A run's share of one of `nodes`."""
    if gpus is None:
        gpus = 1.0 if device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
    if bool(gpus) != (device == "cuda") and device != "auto":
        raise BadInput(f"{device} and {gpus:g} GPUs a run (--device, --gpus-per-run): give what goes together")
    if cpus is None:
        cpus = 1 if gpus else int(min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1))
    share = Share(cpus=cpus, gpus=gpus)
    if not any(share.fits(node) for node in nodes):
        raise BadInput(
            f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs (--cpus-per-run, --gpus-per-run): ask for less"
        )
    return share


def _take(run: _Run) -> None:
    """Fetch what a run left, and say so."""
    try:
        result = ray.get(run.ref)
        if isinstance(result, ResfitError):
            raise result
        run.future.set_result(run.take(result))
    except ray.exceptions.RayError as error:
        reason = " ".join(str(getattr(error, "cause", None) or error).split())[:200]
        run.future.set_exception(Lost(f"the run was lost ({type(error).__name__}: {reason}): repeat the command"))
    except Exception as error:
        run.future.set_exception(error)


def _bring_home(files: dict[str, bytes], folder: Path) -> RunRecord:
    """Write a run folder. The record, which says that it is complete, comes last; one that is there already stays.

    Raises BadInput where another process is at work in the folder.
    """
    with claimed(folder):
        for name in sorted(files, key="record.json".__eq__) if not (folder / "record.json").exists() else ():
            write_atomic(folder / name, files[name])
    return read_record(folder)


def _on_node(arrays: dict[str, Any], task: _Task, queue: Queue) -> Any:
    """A node's work: the files of the run folder, or the validation curve, or an error that says what went wrong."""
    if task.version != __version__:
        return BadInput(f"resfit {__version__} is on a node of the cluster, and {task.version} here: install the same")
    sys.argv = list(task.command)  # the record tells the user's command
    torch.set_num_threads(task.threads)
    observer = _Teller(queue, task.number)
    try:
        data = _as_dataset(arrays)
        if not task.whole:
            return validation_curve(task.recipe, seed=task.seed, data=data, device=task.device, observer=observer)
        with TemporaryDirectory(prefix="resfit-") as out:
            return _train(task, data, Path(out), observer)
    except Exception as error:
        return sendable(error)


def _train(task: _Task, data: Dataset, out: Path, observer: Observer) -> dict[str, bytes]:
    folder = run_folder(out, task.recipe, task.seed)
    for name, content in task.files.items():
        write_atomic(folder / name, content)
    train(
        task.recipe,
        seed=task.seed,
        data=data,
        data_dir=task.data_dir,
        out=out,
        device=task.device,
        resume=bool(task.files),
        init=task.init,
        observer=observer,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _as_arrays(data: Dataset) -> dict[str, Any]:
    """A data set's fields with arrays for tensors: Ray shares arrays among the processes of a node, uncopied."""
    parts = {name: getattr(data, name) for name in _PARTS}
    arrays = {name: (part.images.numpy(), part.labels.numpy()) for name, part in parts.items()}
    return {**{each.name: getattr(data, each.name) for each in fields(data)}, **arrays}


def _as_dataset(arrays: dict[str, Any]) -> Dataset:
    """The data set of `_as_arrays`. Its tensors can be read alone: their memory belongs to the node."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        parts = {
            name: Images(images=torch.from_numpy(arrays[name][0]), labels=torch.from_numpy(arrays[name][1]))
            for name in _PARTS
        }
    return Dataset(**{**arrays, **parts})


class _Teller(Observer):
    """Sends what a run tells to the process that submitted it."""

    def __init__(self, queue: Queue, number: int) -> None:
        self.queue, self.number = queue, number

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Sent on; the data and the folder are known there."""
        self.queue.put((self.number, "started", note))

    def epoch_ended(self, point: EpochPoint) -> None:
        """Sent on."""
        self.queue.put((self.number, "epoch_ended", point))

    def message(self, text: str) -> None:
        """Sent on."""
        self.queue.put((self.number, "message", text))
