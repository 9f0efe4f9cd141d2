"""Train runs on a Ray cluster: send data once per node, bring records and weights back into local run folders.

Ray chooses the node, and restarts a run if its node or process is lost. One thread submits the runs to Ray and receives
their messages; a few others write the run folders.
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
from resfit.observer import Observer, Relay
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, is_finished, read_record
from resfit.run import run_folder, train, validation_curve
from resfit.version import __version__

try:
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise BadInput("Ray is not installed (--ray): pip install 'resfit[ray]'") from None

_PAUSE = 0.2  # seconds between polls while no run ends
_KNOCK = 10.0  # seconds to wait for a cluster to accept a connection
_IN_FLIGHT = 1000  # runs submitted to Ray at a time: more than a cluster runs at once, too few to overload it
_RETRIES = 5  # restarts of a run whose node or process was lost
_TAKERS = 8  # threads that fetch finished runs
_PARTS = ("train", "val", "test")


class Lost(ResfitError):
    """The cluster is lost, or a run's node was lost too often: not an error of the run, which can be repeated."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Resources of a run: CPU cores, which is also its number of threads, and GPUs (0.5 is half of one)."""

    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """The device that a run uses."""
        return "cuda" if self.gpus else "cpu"

    def fits(self, node: dict[str, float]) -> int:
        """Return how many runs fit at once on a node with these resources."""
        by_cpus = int(node.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(node.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else by_cpus


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is sent to a node for a run, besides the data; `files` holds the checkpoint to resume from, if any."""

    number: int
    recipe: Recipe
    seed: int
    device: str
    threads: int
    whole: bool  # True: a full run with folder and test score; False: only the validation curve
    data_dir: Path | None
    init: str | None
    files: dict[str, bytes]
    command: tuple[str, ...]
    version: str = __version__


@dataclass(eq=False, kw_only=True)
class _Run:
    """A submitted run, as known in this process; `take` turns what its node returned into the result."""

    recipe: Recipe
    seed: int
    folder: Path
    observer: Observer
    whole: bool
    take: Callable[[Any], Any]
    future: Future[Any] = field(default_factory=Future)
    ref: Any = None


class OnRay:
    """Executor that trains runs on a Ray cluster, each with its share of a node.

    `address` is that of a cluster, "auto" for the one that this machine belongs to, or "local" to start one that
    listens on 127.0.0.1 only and ends with the `with` block. `cpus` and `gpus` are the resources of a run; by default
    one GPU and one core if the cluster has GPUs, else as many cores as its smallest node has. At most `workers` runs
    execute at a time, by default as many as fit. Observers receive start, epochs and messages, and may end their run by
    raising an exception. The block can be entered once; entering it raises BadInput if the cluster cannot be reached,
    or if no node has these resources.
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
            raise BadInput(f"on Ray, a run uses the GPU assigned to it (--device {device}): give auto, cpu or cuda")
        self.options, self.address, self.most = options, address, workers or _IN_FLIGHT
        self.wanted = (cpus, gpus, device)
        self.numbers = itertools.count()
        self.waiting: deque[_Run] = deque()
        self.running: dict[int, _Run] = {}
        self.data: dict[str, Any] = {}  # Ray object references by data set
        self.closing = threading.Event()
        self.takers = ThreadPoolExecutor(_TAKERS)
        self.lost: Lost | None = None

    def __enter__(self) -> OnRay:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))  # Ray reports lost nodes on stdout
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
            self.takers.shutdown()  # finish fetching runs that have ended, even after Ctrl-C
            for run in self.running.values():
                ray.cancel(run.ref)
            self._give_up()

    def submit(self, recipe: Recipe, seed: int, observer: Observer) -> Future[RunRecord]:
        """Submit a run; the future gives its record once its folder is on this machine."""
        folder = run_folder(self.options.out, recipe, seed)

        def take(files: dict[str, bytes]) -> RunRecord:
            return _bring_home(files, folder)

        return self._submit(_Run(recipe=recipe, seed=seed, folder=folder, observer=observer, whole=True, take=take))

    def validation_curve(self, recipe: Recipe, seed: int, observer: Observer) -> tuple[EpochPoint, ...]:
        """Train on the cluster and return the validation curve, as `resfit.run.validation_curve` does."""
        run = _Run(recipe=recipe, seed=seed, folder=Path(), observer=observer, whole=False, take=tuple)
        curve: tuple[EpochPoint, ...] = self._submit(run).result()
        return curve

    def _submit(self, run: _Run) -> Future[Any]:
        self.waiting.append(run)
        if self.lost or self.closing.is_set():
            self._give_up()
        return run.future

    def _follow(self) -> None:
        """Submit waiting runs and poll running ones until the block ends; this is the thread's main loop."""
        try:
            while not self.closing.is_set():
                self._begin_waiting()
                self._look()
        except Exception as error:  # various exceptions of Ray, or a lost queue
            reason = " ".join(str(error).split())[:200]
            self.lost = Lost(f"the Ray cluster is lost ({type(error).__name__}: {reason}): run the same command again")
            self._give_up()

    def _begin_waiting(self) -> None:
        """Submit waiting runs to Ray, up to the limit."""
        while self.waiting and len(self.running) < self.most and not self.closing.is_set():
            run, number = self.waiting.popleft(), next(self.numbers)
            try:
                run.ref = self.work.remote(self._shipped(run.recipe), self._task(run, number), self.queue)
            except Exception as error:  # unusable data, or too large for the cluster
                run.future.set_exception(sendable(error))
            else:
                self.running[number] = run

    def _look(self) -> None:
        """Wait briefly, pass new messages on to observers, and fetch the runs that have ended."""
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
        except Exception as error:  # raised by the observer, for example to prune a trial
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
        """Return a Ray reference to a recipe's data, loaded here on first use; each node fetches it at most once."""
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
        """Cancel all runs that have not ended, or fail them if the cluster is lost."""
        runs = [*self.running.values(), *self.waiting]
        self.running.clear()
        self.waiting.clear()
        for run in runs:
            if self.lost:
                run.future.set_exception(self.lost)
            else:
                run.future.cancel()


def _join(address: str) -> bool:
    """Connect to the cluster; return False if this process is already connected to one."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray collects usage data by default
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with _loopback() if address == "local" else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"cannot join a Ray cluster (--ray {address}; {reason}): start one with ray start --head, or give local"
        ) from None
    return True


@contextmanager
def _loopback() -> Iterator[None]:
    """Make a cluster started in the block listen on 127.0.0.1 only, which is Ray's default on macOS and Windows."""
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def _knock(address: str) -> None:
    """Raise OSError if HOST:PORT does not accept connections: Ray would keep trying for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _share(nodes: list[dict[str, float]], cpus: int | None, gpus: float | None, device: str) -> Share:
    """Return a run's share of one of `nodes`; raises BadInput if no node has enough."""
    if gpus is None:
        gpus = 1.0 if device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
    if bool(gpus) != (device == "cuda") and device != "auto":
        raise BadInput(
            f"device {device} and {gpus:g} GPUs per run contradict each other (--device, --gpus-per-run): change "
            "one of them"
        )
    if cpus is None:
        cpus = 1 if gpus else int(min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1))
    share = Share(cpus=cpus, gpus=gpus)
    if not any(share.fits(node) for node in nodes):
        raise BadInput(
            f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs (--cpus-per-run, --gpus-per-run): ask for less"
        )
    return share


def _take(run: _Run) -> None:
    """Fetch a run's result and set its future."""
    try:
        result = ray.get(run.ref)
        if isinstance(result, ResfitError):
            raise result
        run.future.set_result(run.take(result))
    except ray.exceptions.RayError as error:
        reason = " ".join(str(getattr(error, "cause", None) or error).split())[:200]
        run.future.set_exception(
            Lost(f"the run was lost ({type(error).__name__}: {reason}): run the same command again")
        )
    except Exception as error:
        run.future.set_exception(error)


def _bring_home(files: dict[str, bytes], folder: Path) -> RunRecord:
    """Write a run folder; the record comes last, as it marks the folder complete. An existing record is kept.

    Raises BadInput if another process is using the folder.
    """
    with claimed(folder):
        for name in sorted(files, key="record.json".__eq__) if not is_finished(folder) else ():
            write_atomic(folder / name, files[name])
    return read_record(folder)


def _on_node(arrays: dict[str, Any], task: _Task, queue: Queue) -> Any:
    """Run a task on a node; return the files of the run folder, the validation curve, or an error to raise."""
    if task.version != __version__:
        return BadInput(
            f"a node of the cluster has resfit {__version__}, but this machine has {task.version} (--ray): "
            "install the same version"
        )
    sys.argv = list(task.command)  # the record stores the user's command
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
    """Return a data set's fields with NumPy arrays for tensors: Ray shares arrays on a node without copying."""
    parts = {name: getattr(data, name) for name in _PARTS}
    arrays = {name: (part.images.numpy(), part.labels.numpy()) for name, part in parts.items()}
    return {**{each.name: getattr(data, each.name) for each in fields(data)}, **arrays}


def _as_dataset(arrays: dict[str, Any]) -> Dataset:
    """Return the data set of `_as_arrays`; its tensors are read-only, as Ray owns their memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        parts = {
            name: Images(images=torch.from_numpy(arrays[name][0]), labels=torch.from_numpy(arrays[name][1]))
            for name in _PARTS
        }
    return Dataset(**{**arrays, **parts})


class _Teller(Relay):
    """Observer on a node that sends the start, epochs and messages to the process that submitted the run."""

    def __init__(self, queue: Queue, number: int) -> None:
        self.queue, self.number = queue, number

    def forward(self, name: str, *arguments: Any) -> None:
        """Send the callback, if it is one of these."""
        if name in ("started", "epoch_ended", "message"):
            self.queue.put((self.number, name, arguments[-1]))  # of the start the note: the other side has the rest
