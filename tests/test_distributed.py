"""A run in several processes is the run of one: the same images, each once, the same weights, one folder.

Sums of float32 in another order differ in their last digits, and training carries these on: after a few steps weights
agree to `CLOSE`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from torch import Tensor, nn

import resfit
from helpers.runs import FOLDER
from helpers.tiny_recipe import TINY
from helpers.together import command, together
from helpers.training import CPU, equal, images_and_labels, trainer, weights
from resfit import distributed, run, runner
from resfit.checkpoint import load_state
from resfit.data import Dataset
from resfit.errors import BadInput, RunFailed
from resfit.evaluate import predict_logits
from resfit.interrupt import Interrupted
from resfit.layers import Norm
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import read_record
from resfit.run import train
from resfit.spec import NormSpec
from resfit.train import Trainer

CLOSE = {"rtol": 1e-3, "atol": 1e-4}

# Two epochs of 256 images. Of 51 images at a time the last batch has one, and a process has none of it.
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {"train.batch_size": 64},
    "a batch of one image": {"train.batch_size": 51, "augment.policy": "trivial"},
    "accumulated and clipped": {"train.batch_size": 50, "train.accumulate": 2, "train.clip": 0.5},
    "sam and swa": {"optim.sam": {"rho": 0.05}, "average.name": "swa", "average.start": 0.4, "train.batch_size": 60},
    "muon and ema, mixed": {
        "optim.name": "muon",
        "optim.nesterov": True,
        "average.name": "ema",
        "average.decay": 0.8,
        "augment.mixup": 0.2,
        "augment.cutmix": 1.0,
        "train.batch_size": 64,
    },
    "easy images skipped": {"train.skip_easy": 0.3, "train.batch_size": 64, "augment.flip": "random"},
    "a stem that freezes": {
        "spec.stem": {"kind": "whiten", "kernel": 2, "channels": 8},
        "train.freeze_stem_after": 1,
        "train.batch_size": 64,
    },
}


def recipes() -> dict[str, Recipe]:
    base = Recipe.from_dict(TINY).replace({"train.epochs": 2, "optim.lr": 0.02})
    return {name: base.replace(fields) for name, fields in TRAININGS.items()}


def trained(recipe: Recipe, precision: str = "fp32", pieces: int = 1) -> dict[str, Any]:
    """What two epochs leave."""
    run = trainer(recipe, precision=precision)
    run.pieces = pieces
    results = list(run.epochs())
    return {
        "weights": weights(run.net),
        "evaluated": weights(run.evaluated),
        "losses": [result.loss for result in results],
        "hits": [result.accuracy * result.images for result in results],
        "images": [result.images for result in results],
        "easy": None if run.easy is None else run.easy.losses,
        "generator": run.generator.get_state(),
    }


def all_trainings() -> dict[str, dict[str, Any]]:
    ends = {name: trained(recipe) for name, recipe in recipes().items()}
    ends["fp16"] = trained(recipes()["plain"], "fp16")
    ends["in pieces"] = trained(recipes()["plain"], pieces=4)
    return ends


def all_trainings_joined() -> dict[str, dict[str, Any]]:
    with distributed.joined():
        ends, plain = all_trainings(), recipes()["plain"]
        with patch.object(distributed, "sum_gradients", lambda net: None):
            ends["gradients apart"] = trained(plain)
        with patch.object(distributed, "_statistics", own_statistics):
            ends["statistics apart"] = trained(plain)
        return ends


def own_statistics(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, variance, like.new_tensor(x.numel() / x.shape[1])


@pytest.fixture(scope="module")
def ends() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What every training leaves in one process, and in each of two."""
    first, second = together(all_trainings_joined)
    return all_trainings(), first, second


@pytest.mark.parametrize("name", [*TRAININGS, "fp16", "in pieces"])
def test_two_processes_train_as_one_does(ends: tuple[dict[str, Any], ...], name: str) -> None:
    one, first, second = (each[name] for each in ends)
    close = CLOSE if name != "fp16" else {"rtol": 0.05, "atol": 0.01}
    torch.testing.assert_close(first["weights"], one["weights"], **close)
    torch.testing.assert_close(first["evaluated"], one["evaluated"], **close)
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-3 if name != "fp16" else 0.01)
    assert first["hits"] == pytest.approx(one["hits"], abs=2 if name != "fp16" else 6)
    assert first["images"] == one["images"]
    assert torch.equal(first["generator"], one["generator"])
    assert equal(first["weights"], second["weights"])
    assert equal(first["evaluated"], second["evaluated"])
    if one["easy"] is not None:
        torch.testing.assert_close(first["easy"], one["easy"], rtol=0.02, atol=1e-3)


def norm_example() -> tuple[Tensor, Tensor, Tensor]:
    """Seven images, what their gradients are weighted by, and a norm's weight."""
    generator = torch.Generator().manual_seed(3)
    x, wanted = torch.randn(2, 7, 4, 3, 3, dtype=torch.float64, generator=generator)
    return 5 + x, wanted, torch.rand(4, dtype=torch.float64, generator=generator)


def normed(norm: nn.Module, own: slice) -> list[Any]:
    """A norm's output, its gradients and its buffers, for these images of the seven."""
    x, wanted, weight = norm_example()
    norm.double().load_state_dict({"weight": weight}, strict=False)
    mine = x[own].to(memory_format=torch.channels_last).requires_grad_()
    out = norm(mine)
    (out * wanted[own]).sum().backward()
    distributed.sum_gradients(norm)
    return [out.detach(), mine.grad, norm.weight.grad, norm.bias.grad, weights(norm)]


def normed_together(sizes: tuple[int, ...]) -> list[Any]:
    with distributed.joined():
        start = sum(sizes[: distributed._rank])
        return normed(Norm(4, NormSpec()), slice(start, start + sizes[distributed._rank]))


@pytest.mark.parametrize("sizes", [(4, 3), (7, 0), (1, 4, 2)])
def test_a_norm_takes_the_statistics_and_gradients_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    parts = together(normed_together, sizes, count=len(sizes))
    out, of_x, *rest = normed(nn.BatchNorm2d(4), slice(0, 7))
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), out)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), of_x)
    for part in parts:
        torch.testing.assert_close(part[2:], rest)


@pytest.mark.parametrize("name", ["gradients apart", "statistics apart"])
def test_without_one_of_the_sums_two_processes_train_otherwise(ends: tuple[dict[str, Any], ...], name: str) -> None:
    """The negative control."""
    one, first, _ = ends
    with pytest.raises(AssertionError):
        torch.testing.assert_close(first[name]["weights"], one["plain"]["weights"], **CLOSE)


class Watching(nn.Module):
    """Classifies by a corner pixel, and keeps which images it saw: each has its number there."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += images[:, 0, 0, 0].int().tolist()
        logits: Tensor = self.head(images[:, 0, 0, :1])
        return logits


def numbered(count: int) -> Tensor:
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return images


def seen_in_training_and_evaluation(recipe: Recipe) -> tuple[list[list[int]], list[list[int]], Tensor, Tensor]:
    with distributed.joined():
        torch.manual_seed(0)
        net, trained_on = Watching(), []
        labels = images_and_labels(recipe)[1][:250]
        run = Trainer(
            net=net, recipe=recipe, images=numbered(250), labels=labels, normalize=lambda images: images.float(), seed=0
        )
        for _ in run.epochs():
            trained_on.append(list(net.seen))
            net.seen.clear()
        evaluated = []
        for count, tta in ((7, "none"), (101, "flip")):
            logits = predict_logits(net, numbered(count), lambda images: images.float(), tta=tta, tta_share=0.3)
            evaluated.append(list(net.seen))
            net.seen.clear()
        return trained_on, evaluated, logits[0], logits[1]


def test_every_image_is_seen_once_by_one_process(tiny: Recipe) -> None:
    recipe = tiny.replace({"augment.crop": 0, "train.batch_size": 33, "train.epochs": 2, "optim.lr": 1e-6})
    found = together(seen_in_training_and_evaluation, recipe, count=3)
    for epoch in range(2):
        shares = [trained_on[epoch] for trained_on, *_ in found]
        assert sorted(chain(*shares)) == list(range(250))
        assert max(map(len, shares)) - min(map(len, shares)) <= 8  # one a batch
    plain = [evaluated[0] for _, evaluated, *_ in found]
    assert list(chain(*plain)) == list(range(7))
    views = [evaluated[1] for _, evaluated, *_ in found]
    assert sum(map(len, views)) == 101 + 31  # a second view of the least sure ones; its corner is another pixel
    alone = seen_in_training_and_evaluation(recipe)
    for *_, logits, averaged in found:
        torch.testing.assert_close(logits, alone[2])
        torch.testing.assert_close(averaged, alone[3])


class Watcher(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def stepped(self, epoch: int, done: float) -> None:
        self.told += 1

    def message(self, text: str) -> None:
        self.told += 1


def train_and_watch_the_writing(recipe: Recipe, out: str) -> tuple[dict[str, Any], list[str], int]:
    written, watcher = [], Watcher()

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def write(*arguments: Any, **options: Any) -> Any:
            written.append(name)
            return real(*arguments, **options)

        setattr(module, name, write)

    for name in ("write_atomic", "remove_leftovers"):
        watch(run, name)
    for name in ("write_atomic", "append_line", "save_state", "save_model", "write_report"):
        watch(runner, name)
    record = train(recipe, out=out, observer=watcher)
    return record.to_dict(), written, watcher.told


def test_one_process_writes_and_all_get_the_record(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"train.epochs": 2, "optim.lr": 0.02, "evaluate.selection": "best-val", "train.patience": 9})
    (first, written, told), (second, nothing, untold) = together(
        train_and_watch_the_writing, recipe, str(tmp_path / "two")
    )
    assert nothing == []
    assert untold == 0
    assert {"write_atomic", "append_line", "save_state", "save_model", "write_report"} <= set(written)
    assert told >= 20  # steps
    one = train(recipe, out=tmp_path / "one")
    names = [sorted(path.name for path in (tmp_path / which / FOLDER).iterdir()) for which in ("one", "two")]
    assert names[0] == names[1]
    record = read_record(tmp_path / "two" / FOLDER)
    assert (record.env["world_size"], one.env["world_size"]) == (2, 1)
    assert [point.images for point in record.curve] == [point.images for point in one.curve]
    assert [p.train_loss for p in record.curve] == pytest.approx([p.train_loss for p in one.curve], rel=1e-3)
    assert sum(map(sum, record.test.confusion)) == record.data["n_test"]
    assert record.test.accuracy == pytest.approx(one.test.accuracy, abs=0.01)
    for plain in (first, second):
        for key in ("seconds_to_result", "seconds_saving", "images_per_second", "env", "curve"):
            plain.pop(key)
    assert first == second


def act_at_step(number: int, rank: int, act: Callable[[], None]) -> None:
    """Let the process of this rank act after so many optimizer steps of its run."""
    steps, real = [0], runner.Runner._stepped

    def stepped(self: Any, epoch: int, done: float) -> None:
        steps[0] += 1
        if steps[0] == number and int(os.environ["RANK"]) == rank:
            act()
        real(self, epoch, done)

    runner.Runner._stepped = stepped  # type: ignore[method-assign]


def end_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def command_in_which_one_is_signalled(number: signal.Signals, arguments: list[str], rank: int = 1) -> Any:
    act_at_step(13, rank, lambda: end_self(number))
    return command(arguments)


def recipe_file(folder: Path, **fields: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(Recipe.from_dict(TINY).replace(fields).to_dict()))
    return str(path)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_the_others_end_with_one_line(tmp_path: Path, rank: int) -> None:
    arguments = ["train", recipe_file(tmp_path), "--out", str(tmp_path / "runs")]
    began = time.monotonic()
    ends = together(command_in_which_one_is_signalled, signal.SIGKILL, arguments, rank, count=3)
    assert ends.pop(rank) == -signal.SIGKILL
    assert [status for status, *_ in ends] == [1, 1]
    (line,) = [line for *_, errors in ends for line in errors.splitlines() if "error" in line]
    assert line.startswith("error: another process of this run was killed or cannot be reached (")
    assert line.endswith("continue from the last checkpoint with resfit train --resume RUN")
    assert time.monotonic() - began < 200
    assert load_state(tmp_path / "runs" / FOLDER / "state.pt")["trainer"]["epoch"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_stops_all_and_another_number_of_processes_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    file = recipe_file(tmp_path, **{"train.epochs": 2, "optim.lr": 0.02})
    ends = together(command_in_which_one_is_signalled, number, ["train", file, "--out", str(tmp_path / "runs")])
    folder = tmp_path / "runs" / FOLDER
    assert [status for status, *_ in ends] == [128 + number] * 2
    lines = [line for *_, errors in ends for line in errors.splitlines() if "interrupted" in line]
    assert lines == [f"interrupted ({number.name}): continue with resfit train --resume {folder}"]
    assert ends[0][1].startswith("tiny: ")
    assert ends[1][1] == ""
    state = load_state(folder / "state.pt")
    assert (state["world_size"], state["trainer"]["epoch"], state["trainer"]["under_way"]["seen"]) == (2, 1, 384)
    record = train(Recipe.from_yaml(file), out=tmp_path / "runs", resume=True)
    assert record.events == ("epoch 2, image 384: resumed in one process instead of 2 processes",)
    train(Recipe.from_yaml(file), out=tmp_path / "undisturbed")
    torch.testing.assert_close(
        dict(resfit.load(folder).state_dict()),
        dict(resfit.load(tmp_path / "undisturbed" / FOLDER).state_dict()),
        **CLOSE,
    )


def resumed(recipe: Recipe, out: str) -> tuple[tuple[str, ...], int]:
    record = train(recipe, out=out, resume=True)
    return record.events, record.env["world_size"]


def test_what_one_process_began_two_go_on_with(tiny: Recipe, tmp_path: Path) -> None:
    class Stopping(Observer):
        def stepped(self, epoch: int, done: float) -> None:
            if (epoch, round(done, 1)) == (1, 0.5):
                signal.raise_signal(signal.SIGTERM)

    recipe = tiny.replace({"train.epochs": 2, "optim.lr": 0.02})
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "runs", observer=Stopping())
    assert (
        together(resumed, recipe, str(tmp_path / "runs"))
        == [(("epoch 1, image 640: resumed in 2 processes instead of one process",), 2)] * 2
    )
    train(recipe, out=tmp_path / "undisturbed")
    after, undisturbed = (resfit.load(tmp_path / name / FOLDER).state_dict() for name in ("runs", "undisturbed"))
    torch.testing.assert_close(dict(after), dict(undisturbed), **CLOSE)


def train_until_it_fails(recipe: Recipe, out: str) -> tuple[str, str]:
    try:
        train(recipe, out=out)
    except (RunFailed, BadInput) as error:
        return type(error).__name__, str(error)
    return "", ""


def test_all_diverge_and_go_back_together(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"optim.lr": 1e30, "optim.momentum": 0.0, "schedule.name": "constant", "train.rollbacks": 1})
    ends = together(train_until_it_fails, recipe, str(tmp_path))
    assert ends[0] == ends[1]
    assert ends[0][0] == "Diverged"
    assert len(load_state(tmp_path / FOLDER / "state.pt")["events"]) == 1


def disagreements() -> list[str]:
    with distributed.joined():
        said = []
        for value in ("the same", f"of {distributed._rank}"):
            try:
                distributed.require_same("data", value)
                said.append("")
            except BadInput as error:
                said.append(str(error))
        return said


def test_processes_that_see_different_data_are_refused() -> None:
    complaint = "the processes of this run have different data (process 1): give all of them the same"
    assert together(disagreements) == [["", ""], ["", complaint]]


def random_numbers() -> list[Tensor]:
    with distributed.joined():
        torch.manual_seed(0)
        distributed.seed_this_rank(0, 1, 2)
        first = torch.rand(4)
        torch.rand(3)
        distributed.seed_this_rank(0, 1, 2)
        return [first, torch.rand(4)]


def test_dropout_draws_apart_and_the_same_after_a_resume() -> None:
    (first, went_on), (second, again) = together(random_numbers)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(4))
    assert not torch.equal(first, went_on)
    assert not torch.equal(first, second)
    assert torch.equal(second, again)


def out_of_memory(recipe: Recipe) -> str:
    def forward(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with distributed.joined():
        run = trainer(recipe)
        run.forward = forward
        try:
            run.train_epoch()
        except RunFailed as error:
            return str(error)
    return ""


def test_what_cannot_work_in_several_processes_is_refused_in_a_line(tiny: Recipe, tmp_path: Path) -> None:
    assert all(line.startswith("out of memory in one of several processes") for line in together(out_of_memory, tiny))
    compiled = together(train_until_it_fails, tiny.replace({"train.compile": True}), str(tmp_path))
    assert compiled[0] == ("BadInput", "several processes cannot train a compiled network (train.compile): give false")
    ends = together(command, ["study", "anything"])
    assert [status for status, *_ in ends] == [2, 2]
    lines = "".join(errors for *_, errors in ends).splitlines()
    assert lines == ["error: torchrun only works with resfit train (resfit study): start it without torchrun"]


def hang_or_wait(seconds: float) -> str:
    distributed._PATIENCE = timedelta(seconds=seconds)
    try:
        with distributed.joined():
            if not distributed.is_main():
                time.sleep(3 * seconds)
            distributed.barrier()
    except RunFailed as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_the_run() -> None:
    assert together(hang_or_wait, 5.0)[0].startswith("another process of this run was killed or cannot be reached")


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.joined():
        assert distributed.is_single()
    assert distributed.own_device(CPU) == CPU


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m resfit train …`, once it has trained an epoch."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "resfit", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*words, *arguments], stderr=subprocess.PIPE, env=environment, text=True)
    assert started.stderr is not None
    while not (line := started.stderr.readline()).startswith("epoch "):
        assert line, f"torchrun ended with {started.wait()}"
    return started


def workers(agent: int) -> list[int]:
    """The processes that torchrun started (Linux)."""
    return [int(word) for word in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of torchrun in /proc")
def test_torchrun_hands_ctrl_c_on_and_a_killed_process_ends_it(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, **{"train.epochs": 100_000})
    folder = tmp_path / "runs" / FOLDER
    started = torchrun(file, "--out", str(tmp_path / "runs"))
    started.send_signal(signal.SIGINT)
    said = started.communicate()[1].splitlines()
    told = [line for line in said if line.startswith("interrupted")]
    assert told == [f"interrupted (SIGINT): continue with resfit train --resume {folder}"]
    assert load_state(folder / "state.pt")["trainer"]["epoch"] >= 1
    again = torchrun("--resume", str(folder))
    victim = workers(again.pid)[1]
    os.kill(victim, signal.SIGKILL)
    said = again.communicate()[1].splitlines()
    assert again.returncode == 1
    assert len([line for line in said if line.startswith("error: another process of this run was killed")]) == 1
    assert not any(line.startswith("Traceback") and "resfit" in line for line in said)


def train_two_seeds(recipe: Recipe, out: str) -> list[float]:
    """As the command does it: the data that the first process was shown serves the second run."""

    class Kept(Observer):
        data = None

        def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
            self.data = data

    kept = Kept()
    with patch.object(distributed, "_PATIENCE", timedelta(seconds=60)):
        return [train(recipe, seed=seed, out=out, observer=kept, data=kept.data).test.accuracy for seed in (0, 1)]


def test_several_runs_in_turn_may_keep_their_data_in_the_first_process_alone(tiny: Recipe, tmp_path: Path) -> None:
    first, second = together(train_two_seeds, tiny.replace({"train.epochs": 1}), str(tmp_path))
    assert first == second
    assert [read_record(tmp_path / "tiny" / str(seed)).test.accuracy for seed in (0, 1)] == first
