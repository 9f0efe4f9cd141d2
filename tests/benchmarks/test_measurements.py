"""What the benchmarks measure is what they say: the convolutions of a network, whole data sets, pages given back."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import ceiling
import overhead
import pytest
import step
import torch
from ceiling import conv_shapes, measured
from common import Recorder, read_records, take_turns
from scaling import stored, training, widened
from start import answered, trained
from to_accuracy import ours, peers_runs, side_by_side
from torch import nn

from resfit.cost import cost
from resfit.errors import BadInput, RunFailed
from resfit.net import build
from resfit.recipe import get_recipe
from resfit.record import read_record


@pytest.mark.parametrize("downsample", ["stride", "maxpool", "blur"])
@pytest.mark.parametrize("name", ["cifar10-94", "seed001d", "seed003", "digits"])
def test_the_convolutions_of_a_network_are_those_that_its_blocks_run(name, downsample):
    spec = get_recipe(name, {"spec.downsample": downsample}).spec
    found = []

    def note(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], inputs[0].shape[-1])
        found.append(shape)

    with torch.device("meta"):
        net = build(spec)
        for stage in net.stages.modules():
            if isinstance(stage, nn.Conv2d):
                stage.register_forward_hook(note)
        net.eval()(torch.zeros(1, spec.input.channels, spec.input.size, spec.input.size))
    assert sorted(conv_shapes(spec)) == sorted(found)


def test_kernels_are_measured_forward_and_with_backward():
    found = measured("cpu", "fp32", 2, [(3, 8, 3, 2, 8)], 32)
    assert set(found) == {"matrix product", "3-8 3x3/2 @8", "3-8 3x3/2 @8 with backward"}
    assert all(value > 0 for value in found.values())


def test_the_overhead_of_runs_in_this_process_is_measured(tiny):
    threads = torch.get_num_threads()
    try:
        found = overhead.here(tiny, 3)
    finally:
        torch.set_num_threads(threads)
    assert 0 < found["median"] <= found["largest"] < 60
    assert found["first"] > 0


def test_short_epochs_draw_from_the_whole_data_set(tiny):
    recipe = tiny.replace({"train.batch_size": 10, "train.epochs": 50})
    trainer = step.ShortEpochs(
        net=build(recipe.spec),
        recipe=recipe,
        images=torch.zeros(1000, 1, 8, 8, dtype=torch.uint8),
        labels=torch.zeros(1000, dtype=torch.int64),
        normalize=lambda images: images.float(),
        seed=0,
        steps=2,
    )
    drawn = [
        int(i)
        for _ in range(5)
        for group in trainer._step_groups(trainer._begin_epoch().order)
        for batch in group
        for i in batch
    ]
    assert len(drawn) == 5 * 2 * 10
    assert max(drawn) > 900
    assert trainer.train_epoch().images == 20
    assert trainer.images_per_second(0.0) > 0


def test_the_first_steps_of_a_loop_do_not_count():
    def loop() -> Iterator[int]:
        yield 10**9
        while True:
            yield 1

    assert step.images_per_second(loop(), 0.01, warm_up=1) < 10**9


def test_ratios_are_speed_to_the_usual_loop_and_work_to_the_ceiling():
    found = {
        "ceiling bf16": {"matrix product": 800.0},
        "resfit bf16": {"images_per_second": 300.0},
        "usual": {"images_per_second": 60.0},
    }
    ratios = step.compare(found, flop=2 * 10**9, precisions=["bf16"])
    assert ratios == {"bf16 to usual": 5.0, "bf16 share of ceiling": 0.75}


def test_runs_stand_side_by_side_also_where_a_side_was_stopped():
    ours, peer = [{"seconds": 1.0}, {"seconds": 2.0}], [{"seconds": 4.0}]
    assert list(side_by_side(ours, {"peer": peer})) == [
        {"resfit": ours[0], "peer": peer[0], "ratios": {"seconds to peer": 0.25}},
        {"resfit": ours[1], "ratios": {}},
    ]
    assert list(side_by_side([], {"peer": peer})) == [{"peer": peer[0], "ratios": {}}]


def test_a_peer_that_fails_costs_the_others_nothing(tmp_path, capsys):
    table = "| run | epoch | tta_val_acc | time_seconds |\n| 0 | eval | 0.93 | 90 |\n| 1 | eval | 0.94 | 2.5 |"
    scripts = {"broken": "print('half a table')\nraise SystemExit(1)", "whole": f"print({table!r})"}
    for name, code in scripts.items():
        (tmp_path / f"{name}.py").write_text(code)
    paths = {name: tmp_path / f"{name}.py" for name in scripts}
    found = peers_runs(paths, tmp_path, 3, shim=False, limit=60.0)
    assert found == {"whole": [{"seconds": 2.5, "accuracy": 0.94}]}
    said = capsys.readouterr().err
    assert "half a table" in said
    assert "error: no run was finished" in said
    assert peers_runs(paths, tmp_path, 0, shim=False, limit=60.0) == {}


def test_a_measurement_that_fails_costs_the_others_nothing(tmp_path, capsys):
    def fails():
        raise RunFailed("out of memory")

    recorder = Recorder(benchmark="step", subject="tiny", settings={}, device="cpu", out=tmp_path)
    measured = {"ceiling bf16": lambda: {"matrix product": 800.0}, "usual": fails}
    measured["resfit bf16"] = lambda: {"images_per_second": 400.0}
    take_turns(recorder, measured, partial(step.compare, flop=10**9, precisions=["bf16"]), 1)
    (record,) = read_records(tmp_path)
    assert record["medians"]["ratios"] == {"bf16 share of ceiling": 0.5}
    assert "error: usual: out of memory" in capsys.readouterr().err
    with pytest.raises(RunFailed, match="nothing was measured of tiny"):
        take_turns(replace(recorder, rounds=[], path=None), {"usual": fails}, ceiling.compare, 1)
    assert len(read_records(tmp_path)) == 1


def test_a_compiled_step_is_compared_as_the_plain_one_is():
    found = {
        "ceiling bf16": {"matrix product": 800.0},
        "resfit bf16": {"images_per_second": 300.0},
        "resfit bf16 compiled": {"images_per_second": 360.0},
        "usual": {"images_per_second": 60.0},
    }
    ratios = step.compare(found, flop=10**9, precisions=["bf16"])
    assert ratios["bf16 compiled to usual"] == 6.0
    assert ratios["bf16 compiled share of ceiling"] == 0.45


def test_a_wider_network_has_about_the_square_of_the_parameters():
    recipe = get_recipe("cifar10-94")
    assert widened(recipe, 1.0).spec == recipe.spec
    ratio = cost(widened(recipe, 2.0).spec).params / cost(recipe.spec).params
    assert 3.8 < ratio < 4.1


def test_growth_is_measured_with_what_grew(tmp_path):
    found = training("cifar10-94", 0.0, 1, "cpu", str(tmp_path), images=500, width=0.1, side=16)
    assert (found["images"], found["side"]) == (500, 16)
    assert found["images_per_second"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own figures")
def test_cold_images_leave_memory_and_come_back(tmp_path):
    path = tmp_path / "images.npy"
    pixels, forget = stored(path, (2500, 3, 32, 32), "cold")
    resident, _ = stored(path, (2500, 3, 32, 32), "resident")
    assert (pixels == resident).all()
    assert kilobytes_in_memory(path) > 7000
    forget()
    assert kilobytes_in_memory(path) == 0
    assert (pixels[1234] == resident[1234]).all()


def kilobytes_in_memory(path: Path) -> int:
    """What this process has of a mapped file."""
    _, _, after = Path("/proc/self/smaps").read_text().partition(str(path))
    (line,) = (line for line in after.splitlines()[:6] if line.startswith("Rss:"))
    return int(line.split()[1])


def test_a_start_is_timed_from_before_the_process_and_ends_at_the_first_step(tmp_path):
    began = time.monotonic()
    assert 0 < answered("--version")["seconds"] <= time.monotonic() - began
    with pytest.raises(RunFailed, match=r"exit status 2 \(resfit show nowhere\)"):
        answered("show nowhere")
    before = 100.0
    whole = time.monotonic()
    found = trained(str(tmp_path), "digits", time.monotonic() - before)
    assert before < found["seconds"] < before + time.monotonic() - whole


def test_our_runs_are_those_of_the_command_that_users_type(tmp_path):
    settings = ["--train.epochs", "1", "--data.fraction", "0.2"]
    runs = ours("digits", range(3, 5), tmp_path, data_dir=tmp_path, device="cpu", settings=settings, limit=300.0)
    records = [read_record(tmp_path / "digits" / str(seed)) for seed in (3, 4)]
    assert runs == [
        {"seconds": record.seconds_to_result, "accuracy": record.accuracy, "seed": record.seed} for record in records
    ]
    assert records[0].env["command"].startswith("python -m resfit train digits --seed 3 --runs 2")
    with pytest.raises(BadInput, match="runs of another measurement exist already"):  # and are not taken for new ones
        ours("digits", range(3, 5), tmp_path, data_dir=tmp_path, device="cpu", settings=settings, limit=300.0)


def test_our_failure_is_told_by_its_last_line(tmp_path):
    with pytest.raises(RunFailed, match="unknown field"):
        ours("digits", range(1), tmp_path, data_dir=tmp_path, device="cpu", settings=["--optim.rate", "1"], limit=300.0)
