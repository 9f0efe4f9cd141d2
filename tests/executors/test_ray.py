"""Runs on a real Ray cluster of two nodes leave what local runs leave, also where a node is lost in the middle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.data import Dataset, load_dataset
from resfit.errors import BadInput
from resfit.executors.jobs import Job, Watcher, run_jobs
from resfit.executors.local import InProcess, RunOptions
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record
from resfit.run import run_folder, train
from resfit.studyrecord import FailedRun
from resfit.tunerecord import read_search

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'resfit[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from resfit.executors import cluster as module  # noqa: E402
from resfit.executors.cluster import OnRay, Share, _bring_home, _share  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(Path(module.__file__).parents[2]),
}


def begin_node(nodes: Cluster) -> None:
    """A node of a core; a busy machine needs more than the 30 s that Ray gives it."""
    for left in reversed(range(5)):
        try:
            nodes.add_node(num_cpus=1, include_dashboard=False)
            return
        except Exception:
            if not left:
                raise


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        nodes = Cluster()
        begin_node(nodes)
        yield nodes
        nodes.shutdown()


@pytest.fixture
def two_nodes(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster of two nodes with a core each, which this process has not joined yet."""
    if len(cluster.list_all_nodes()) == 1:
        begin_node(cluster)
    cluster.wait_for_nodes(240)
    yield cluster
    ray.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as a run has there, so that its bits are the same here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Log(Watcher):
    """Keeps what it is told, and calls `then` after each epoch."""

    def __init__(self, then: Callable[[Log], None] = lambda log: None) -> None:
        self.then = then
        self.todo: list[str] = []
        self.epochs: list[tuple[str, int]] = []
        self.finishes: list[str] = []
        self.failures: dict[str, str] = {}

    def planned(self, jobs: Sequence[Job], done: Sequence[RunRecord], judged_by: str) -> None:
        self.todo = [str(job) for job in jobs]

    def epoch_ended(self, job: Job, point: EpochPoint) -> None:
        self.epochs.append((str(job), point.epoch))
        self.then(self)

    def finished(self, job: Job, record: RunRecord) -> None:
        self.finishes.append(str(job))

    def failed(self, job: Job, error: str) -> None:
        self.failures[str(job)] = error

    def of(self, job: str) -> list[int]:
        """The epochs of a job, as they were told."""
        return [epoch for name, epoch in self.epochs if name == job]


def jobs_of(recipe: Recipe, count: int) -> list[Job]:
    return [Job(recipe=recipe, seed=seed) for seed in range(count)]


def same_result(one: RunRecord, other: RunRecord) -> bool:
    """Whether two records tell the same but for times and for the machine."""

    def timeless(record: RunRecord) -> RunRecord:
        curve = tuple(replace(point, seconds=0.0) for point in record.curve)
        return replace(record, curve=curve, seconds_to_result=0.0, seconds_saving=None, images_per_second=0.0, env={})

    return timeless(one).to_dict() == timeless(other).to_dict()


def test_a_node_lost_in_the_middle_costs_no_run_and_repeats_no_finished_one(
    two_nodes: Cluster, one_thread: None, tiny: Recipe, tmp_path: Path
) -> None:
    long, finished = tiny.replace({"name": "long", "train.epochs": 200}), []

    def lose_a_node(log: Log) -> None:
        """Once the short run is finished and there is a long one in the middle on each node; without a word."""
        under_way = [max(log.of(name)) for name in {name for name, _ in log.epochs} - set(log.finishes)]
        if log.finishes and len(under_way) >= 2 and 2 <= min(under_way) <= max(under_way) <= 150 and not finished:
            finished.extend(log.finishes)
            two_nodes.remove_node(two_nodes.list_all_nodes()[-1], allow_graceful=False)

    jobs, log = [*jobs_of(tiny, 1), *jobs_of(long, 3)], Log(lose_a_node)
    executor = OnRay(RunOptions(out=tmp_path / "ray"), two_nodes.address, cpus=1)
    failed: list[FailedRun] = []
    records = run_jobs(jobs, executor, log, failed)

    assert not failed and len(records) == 4 and sorted(log.finishes) == sorted(map(str, jobs))
    assert finished, "no moment came at which both nodes were in the middle of a run: nothing was lost"
    begun = {str(job): log.of(str(job)).count(1) for job in jobs}
    assert sorted(begun.values()) == [1, 1, 1, 2], "one run was on the lost node"
    assert all(begun[name] == 1 for name in finished)

    local = run_jobs(jobs, InProcess(RunOptions(out=tmp_path / "here"), "cpu"), None, [])
    for job, there, here in zip(jobs, records, local, strict=True):
        folders = [run_folder(tmp_path / place, job.recipe, job.seed) for place in ("ray", "here")]
        assert same_result(there, here)
        assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
        weights = [load_file(folder / "model.safetensors") for folder in folders]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    again = Log()
    assert run_jobs(jobs, executor, again, []) == records
    assert again.todo == [] and again.epochs == []


def test_the_data_comes_from_here_and_is_shipped_once(
    two_nodes: Cluster, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Any] = []
    true = ray.put

    def known_here_alone(*arguments: Any, **options: Any) -> Dataset:
        return replace(load_dataset(*arguments, **options), digest="of no file")

    monkeypatch.setattr(module, "load_dataset", known_here_alone)
    monkeypatch.setattr(module.ray, "put", lambda value: put.append(value) or true(value))
    jobs = [*jobs_of(tiny, 2), *jobs_of(tiny.replace({"name": "rate", "optim.lr": 0.01}), 2)]
    place = RunOptions(out=tmp_path, data_dir=Path("elsewhere"))
    failed: list[FailedRun] = []
    records = run_jobs(jobs, OnRay(place, two_nodes.address, cpus=1), None, failed)
    assert not failed and len(put) == 1
    assert [record.data["digest"] for record in records] == ["of no file"] * 4
    assert {record.recipe for record in records} == {"tiny", "rate"}


def test_what_goes_wrong_is_told_and_an_unfinished_run_goes_on(
    two_nodes: Cluster, one_thread: None, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AfterOne(Observer):
        """Breaks off in the second epoch."""

        def stepped(self, epoch: int, done: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr("resfit.runner._SAVES_SHARE", 1e9)
    begun = tiny.replace({"train.checkpoint_minutes": 1e-9})
    with pytest.raises(KeyboardInterrupt):
        InProcess(RunOptions(out=tmp_path), "cpu").submit(begun, 0, AfterOne())
    wild = begun.replace({"name": "wild", "optim.lr": 1e30, "optim.momentum": 0.0})
    elsewhere = begun.replace({"name": "elsewhere", "data.name": "cifar10", "spec.input.channels": 3})
    jobs = [Job(recipe=recipe, seed=0) for recipe in (begun, wild, elsewhere)]
    log = Log()
    options = RunOptions(out=tmp_path, data_dir=tmp_path / "nothing", offline=True)
    monkeypatch.delenv("RESFIT_DATA_DIR", raising=False)
    with pytest.raises(BadInput, match="not found, and downloads are off"):  # ahead of all runs
        run_jobs(jobs, OnRay(options, two_nodes.address, cpus=1), log, [])
    assert not log.epochs
    failed: list[FailedRun] = []
    records = run_jobs(jobs[:2], OnRay(options, two_nodes.address, cpus=1), log, failed)
    assert [epoch for name, epoch in log.epochs if name == "tiny, seed 0"] == [2, 3]
    assert len(records[0].curve) == 3
    assert "not finite" in log.failures["wild, seed 0"]
    assert [run.point for run in failed] == ["wild"]


def test_the_commands(
    two_nodes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = tmp_path / "tiny.yaml", str(tmp_path / "runs")
    recipe.write_text(yaml.safe_dump(TINY))
    words = [str(recipe), "--ray", two_nodes.address, "--cpus-per-run", "1", "--out", out]
    assert main(["train", *words, "--runs", "2"]) == 0
    told = capsys.readouterr()
    assert "2 runs to do, 0 already done" in told.err and "2 of 2 runs are finished" in told.out
    assert main(["train", *words, "--runs", "3"]) == 0
    assert "1 runs to do, 2 already done" in capsys.readouterr().err
    command = read_record(tmp_path / "runs" / "tiny" / "2").env["command"]
    assert "default_worker" not in command, "the record tells what the user typed"

    pair = tmp_path / "pair.yaml"
    points = {"plain": {}, "slow": {"optim.lr": 0.001}}
    pair.write_text(yaml.safe_dump({"recipe": str(recipe), "baseline": "plain", "points": points, "runs": 2}))
    assert main(["study", str(pair), *words[1:], "--epochs", "1"]) == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out

    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: {choices: [0.1, 1.0e-7, 1.0e+30]}\noptim.momentum: {choices: [0.0]}\n")
    assert main(["tune", *words, "--space", str(space), "--trials", "12"]) == 0
    found = read_search(tmp_path / "runs" / "tiny-tune")
    assert found.trained == 12 == len(found.trials), "threads of one search begin no trial too many"
    assert {trial.outcome for trial in found.trials} >= {"complete", "diverged"}
    assert (found.data["n_val"], found.data["n_test"], found.test_scored) == (200, 0, 0)

    assert main(["train", str(recipe), "--ray", two_nodes.address, "--gpus-per-run", "1", "--out", out + "2"]) == 2
    assert "no node of the cluster has 1 CPUs and 1 GPUs" in capsys.readouterr().err


def listening() -> set[tuple[int, str, int]]:
    """Process, address and port of every TCP socket that a process of this one's listens on."""
    psutil = pytest.importorskip("psutil")
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    found = [socket for socket in psutil.net_connections("tcp") if socket.status == psutil.CONN_LISTEN]
    return {(socket.pid, *socket.laddr) for socket in found if socket.pid in own}


def test_a_local_cluster_listens_to_this_machine_alone(tmp_path: Path) -> None:
    before = listening()
    with OnRay(RunOptions(out=tmp_path), "local", cpus=1) as cluster:
        assert cluster.queue.empty()  # answered by a process of the cluster
        added = {address for _, address, _ in listening() - before}
    assert added
    assert added <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_a_cluster_that_is_not_there_is_one_line(tiny: Recipe, tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match=r"cannot join a Ray cluster \(--ray 127.0.0.1:1;"),
        OnRay(RunOptions(out=tmp_path), "127.0.0.1:1"),
    ):
        pass


def test_a_hopeless_trial_is_ended_where_it_runs(two_nodes: Cluster, tiny: Recipe, tmp_path: Path) -> None:
    class Hopeless(Exception):
        pass

    class Judge(Observer):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def epoch_ended(self, point: EpochPoint) -> None:
            self.epochs.append(point.epoch)
            raise Hopeless

    judge, long = Judge(), tiny.replace({"train.epochs": 100_000})
    with OnRay(RunOptions(out=tmp_path), two_nodes.address, cpus=1) as cluster:
        with pytest.raises(Hopeless):
            cluster.validation_curve(long, 0, judge)
        assert judge.epochs == [1]
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert ray.available_resources().get("CPU") == 2, "its core is free again"
        assert len(cluster.validation_curve(tiny, 0, Observer())) == 3


def test_what_comes_home_does_not_replace_a_finished_run(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, out=tmp_path)
    folder = tmp_path / "tiny" / "0"
    before = (folder / "record.json").read_bytes()
    _bring_home({"record.json": b"another", "model.safetensors": b"other"}, folder)
    assert (folder / "record.json").read_bytes() == before
    assert (folder / "model.safetensors").read_bytes() != b"other"


def test_what_a_run_asks_for() -> None:
    cpus, gpus = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}
    assert _share([cpus, {"CPU": 4.0}, {"CPU": 0.0}], None, None, "auto") == Share(cpus=4, gpus=0.0)
    assert _share([cpus, gpus], None, None, "auto") == Share(cpus=1, gpus=1.0)
    assert _share([cpus, gpus], 2, None, "cpu") == Share(cpus=2, gpus=0.0)
    half = _share([gpus], 2, 0.5, "auto")
    assert (half.device, half.fits(gpus), half.fits(cpus)) == ("cuda", 8, 0)
    assert (Share(cpus=3, gpus=0.0).fits(cpus), Share(cpus=1, gpus=0.1).fits({"CPU": 99.0, "GPU": 1.0})) == (2, 10)
    for wrong in ((17, None, "cpu"), (1, 8.0, "auto"), (1, 1.0, "cpu"), (1, 0.0, "cuda")):
        with pytest.raises(BadInput):
            _share([cpus, gpus], *wrong)
    with pytest.raises(BadInput, match=r"uses the GPU assigned to it \(--device cuda:1\)"):
        OnRay(RunOptions(out=Path()), "auto", device="cuda:1")
