"""resfit prune: a run folder in, a smaller fine-tuned one out, whole and reloadable."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import resfit
from helpers.tiny_recipe import TINY
from resfit import cli, latency, trained
from resfit.errors import BadInput
from resfit.modelfile import save_model
from resfit.observer import Observer
from resfit.prune import prune
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record
from resfit.run import train

SHORTER = {"train.epochs": 1, "optim.lr": 0.02}


@pytest.fixture(scope="module", autouse=True)
def _brief_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network wide enough to prune."""
    stages = [{"blocks": 1, "channels": 32}, {"blocks": 1, "channels": 64}]
    spec = {**TINY["spec"], "stem": {"channels": 32}, "stages": stages}
    out = tmp_path_factory.mktemp("whole")
    train(Recipe.from_dict({**TINY, "name": "wide", "spec": spec}), out=out)
    return out / "wide" / "0"


@pytest.fixture(scope="module")
def pruned(whole: Path) -> tuple[RunRecord, Path]:
    out = whole.parents[1]
    return prune(whole, budget=40_000, overrides=SHORTER, out=out), out / "wide-40k" / "0"


def test_pruning_sees_no_test_image(pruned, whole, tmp_path, monkeypatch):
    load = trained.load_dataset

    def noise(*arguments, **options):
        data = load(*arguments, **options)
        spoiled = replace(data.test, images=torch.randint_like(data.test.images, 0, 256))
        return replace(data, test=spoiled)

    monkeypatch.setattr(trained, "load_dataset", noise)
    prune(whole, budget=40_000, overrides=SHORTER, out=tmp_path)
    kept = [load_file(folder / "pruned.safetensors") for folder in (pruned[1], tmp_path / "wide-40k" / "0")]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_run_without_its_recipe_is_refused(whole, tmp_path):
    bare = shutil.copytree(whole, tmp_path / "wide" / "0")
    (bare / "recipe.yaml").unlink()
    with pytest.raises(BadInput, match=r"no recipe\.yaml in the run folder"):
        prune(bare, budget=40_000, out=tmp_path)


def test_the_pruned_run_is_a_run_like_any_other(pruned):
    record, folder = pruned
    assert read_record(folder) == record
    assert 36_000 < record.params <= record.budget == 40_000
    assert record.epochs == 1
    assert [teacher.sha256 for teacher in record.teachers] == [record.pruning.parent.sha256]
    assert record.config["optim"]["lr"] == 0.02
    assert Recipe.from_yaml(folder / "recipe.yaml").spec == resfit.load(folder).spec
    names = {path.name for path in folder.iterdir()}
    assert {"record.json", "model.safetensors", "report.html", "pruned.safetensors", "metrics.jsonl"} <= names


def test_the_record_compares_the_networks_and_names_the_parent(whole, pruned):
    record, folder = pruned
    pruning = record.pruning
    before, cut, tuned = pruning.networks
    parent = read_record(whole)
    assert (before.accuracy, before.params, before.macs) == (parent.test.accuracy, parent.params, parent.macs)
    assert (tuned.accuracy, tuned.params, tuned.macs) == (record.test.accuracy, record.params, record.macs)
    assert (cut.params, cut.macs) == (record.params, record.macs)
    assert cut.accuracy == resfit.evaluate(folder / "pruned.safetensors").accuracy
    assert 0.5 < cut.accuracy < tuned.accuracy
    content = (whole / "model.safetensors").read_bytes()
    assert pruning.parent.sha256 == hashlib.sha256(content).hexdigest()
    assert record.init is not None and record.init.recipe == parent.recipe
    assert (record.init.data, record.init.note) == (parent.data["digest"], "")
    assert '"digest"' in (folder / "record.json").read_text()
    assert {time.batch for network in pruning.networks for time in network.latency} == {1, 64}
    assert {time.threads for time in cut.latency} == {1, torch.get_num_threads()}
    assert all(time.seconds > 0 for network in pruning.networks for time in network.latency)
    after = {name: width for name, _, width in pruning.widths}
    assert after["stem"] == record.spec["stem"]["channels"]
    assert after["stage 2"] == record.spec["stages"][1]["channels"]


def test_a_new_process_rebuilds_it_with_equal_outputs(pruned):
    _, folder = pruned
    for name in ("pruned.safetensors", "model.safetensors"):
        code = (
            "import json, sys, resfit, torch\n"
            "torch.set_num_threads(2)\n"
            "net = resfit.load(sys.argv[1])\n"
            "x = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)\n"
            "print(json.dumps(net(x).tolist()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / name)], capture_output=True, text=True, check=True
        )
        images = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
        assert torch.equal(torch.tensor(json.loads(done.stdout)), resfit.load(folder / name)(images))


def test_the_page_shows_each_step_of_the_pruning(pruned):
    record, folder = pruned
    page = (folder / "report.html").read_text()
    assert "Pruning" in page
    for network in record.pruning.networks:
        assert f"{network.params:,}" in page
        assert f"{100 * network.accuracy:.2f}" in page


class Cut(Observer):
    """Breaks a run off at an epoch's end."""

    def epoch_ended(self, point: EpochPoint) -> None:
        raise RuntimeError("cut")


@pytest.mark.parametrize("finish", [False, True])
def test_a_pruning_that_was_broken_off_goes_on(pruned, whole, tmp_path, finish):
    """By the same command; `train --resume` may have finished the run before it."""
    overrides = {**SHORTER, "train.checkpoint_minutes": 1e-9}
    with pytest.raises(RuntimeError, match="cut"):
        prune(whole, budget=40_000, overrides=overrides, out=tmp_path, observer=Cut())
    folder = tmp_path / "wide-40k" / "0"
    if finish:
        train(Recipe.from_yaml(folder / "recipe.yaml"), out=tmp_path, resume=True)
    record = prune(whole, budget=40_000, overrides=overrides, out=tmp_path)
    wanted, _ = pruned
    assert record.test == wanted.test and record.curve[-1].train_loss == wanted.curve[-1].train_loss
    assert record.pruning is not None and record.pruning.widths == wanted.pruning.widths
    assert read_record(folder) == record
    with pytest.raises(BadInput, match="a run already exists"):
        prune(whole, budget=40_000, overrides=overrides, out=tmp_path)


def test_the_pruning_of_another_network_is_not_gone_on_with(whole, tmp_path):
    with pytest.raises(RuntimeError, match="cut"):
        prune(whole, budget=40_000, overrides=SHORTER, out=tmp_path, observer=Cut())
    before = tmp_path / "wide-40k" / "0" / "pruned.safetensors"
    net = resfit.load(before)
    with torch.no_grad():
        net.head.weight.add_(1)
    save_model(before, net, net.spec, net.info)
    with pytest.raises(BadInput, match="the pruning of another network already exists"):
        prune(whole, budget=40_000, overrides=SHORTER, out=tmp_path)


def test_fine_tuning_begins_with_the_pruned_weights(pruned, whole, tmp_path):
    """With a rate too small to move them, the weights stay the pruned ones: it did not begin anew."""
    record = prune(whole, budget=40_000, overrides={**SHORTER, "optim.lr": 1e-9}, out=tmp_path)
    cut = record.pruning.networks[1]
    assert record.test.accuracy == pytest.approx(cut.accuracy, abs=0.05)
    a, b = resfit.load(tmp_path / "wide-40k" / "0"), resfit.load(tmp_path / "wide-40k" / "0" / "pruned.safetensors")
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"budget": 10**6}, "already"),
        ({"budget": 100}, "cannot go below"),
        ({"budget": 30_000, "overrides": {"spec.conv_bias": True}}, "keeps its network"),
        ({"budget": 30_000, "overrides": {"data": {"name": "cifar10"}}}, "keeps its network"),
        ({"budget": 40_000}, "a run already exists"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(whole, pruned, options, problem):
    out = whole.parents[1]
    before = sorted(out.rglob("*"))
    with pytest.raises(BadInput, match=problem):
        prune(whole, out=out, **options)
    assert sorted(out.rglob("*")) == before


def test_weights_of_another_network_are_no_start(whole, tiny, tmp_path):
    with pytest.raises(BadInput, match="the network differs in"):
        train(tiny, out=tmp_path, init=whole)


def test_the_command_prunes_and_prints_the_comparison(whole, tmp_path, capsys):
    words = ["prune", str(whole), "--budget", "50k", "--train.epochs", "1", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "fine-tuned" in out
    assert str(tmp_path / "wide-50k" / "0") in out
    assert cli.main(words) == 2


def test_the_unpruned_network_is_the_only_teacher_or_there_is_none(pruned, tmp_path):
    """Also of a run that had a teacher itself, as a pruned one has."""
    _, folder = pruned
    once_more = prune(folder, budget=20_000, overrides=SHORTER, out=tmp_path)
    assert [teacher.path for teacher in once_more.teachers] == [str(folder.resolve())]
    alone = prune(folder, budget=20_000, overrides=SHORTER, out=tmp_path / "alone", teach=False)
    assert alone.teachers == () and alone.config.get("distill") is None
    other = {**SHORTER, "distill.weight": 0.5}
    chosen = prune(folder, budget=20_000, overrides=other, out=tmp_path / "chosen")
    assert chosen.config["distill"]["weight"] == 0.5
