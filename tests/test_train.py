"""The loop: reproducible to the bit, exact on resume, loud when it diverges."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.golden import LOSSES, twenty_losses
from helpers.training import Linear, equal, trainer, weights
from resfit.errors import Diverged, RunFailed
from resfit.recipe import Recipe, get_recipe, recipe_names
from resfit.train import EpochResult, Trainer, _hits, _resized


def test_it_learns(tiny: Recipe) -> None:
    results = list(trainer(tiny.replace({"augment.crop": 0, "train.epochs": 8, "train.batch_size": 32})).epochs())
    assert [r.epoch for r in results] == list(range(1, 9))
    assert results[-1].loss < results[0].loss / 2
    assert results[-1].accuracy > 0.9
    assert results[-1].lr < results[0].lr


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_takes_its_first_steps(name: str) -> None:
    recipe = get_recipe(name, {"train.batch_size": 4})
    run = trainer(recipe, count=8 * recipe.train.accumulate)  # two steps: the rate may rise from 0
    before = {name: value.detach().clone() for name, value in run.net.named_parameters() if value.requires_grad}
    result = run.train_epoch()
    assert math.isfinite(result.loss) and result.loss > 0
    assert result.images == 8 * recipe.train.accumulate
    after = dict(run.net.named_parameters())
    assert all(after[name].isfinite().all() for name in before)
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_same_seed_same_bits_and_other_seed_others(tiny: Recipe) -> None:
    ends = []
    for seed in (1, 1, 2):
        run = trainer(tiny, seed)
        list(run.epochs())
        ends.append(weights(run.net))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


RESUMED = {
    "sgd": {},
    "muon with ema": {"optim.name": "muon", "optim.nesterov": True, "average.name": "ema", "average.decay": 0.9},
    "adamw with dropout": {
        "optim.name": "adamw",
        "optim.lr": 0.001,
        "spec.dropout.block": 0.2,
        "spec.dropout.head": 0.2,
    },
    "adadelta with accumulation": {"optim.name": "adadelta", "train.accumulate": 3},
    "mixup and cutmix": {"augment.mixup": 0.2, "augment.cutmix": 1.0},
    "swa and sam": {
        "average.name": "swa",
        "average.start": 0.3,
        "average.every": "step",
        "optim.sam": {"rho": 0.05},
        "train.accumulate": 2,
    },
    "easy images skipped": {"train.skip_easy": 0.2, "augment.flip": "alternating"},
}


class Cut(Exception):
    """The moment at which a run breaks off."""


def run_until(run: Trainer, cut: int) -> dict[str, Any]:
    """Train until `cut` optimizer steps are done; the state then, apart from the trainer that goes on changing."""
    steps = 0

    def count(epoch: int, done: float) -> None:
        nonlocal steps
        steps += 1
        if steps == cut:
            raise Cut

    run.on_step = count
    with pytest.raises(Cut):
        list(run.epochs())
    return copy.deepcopy(run.state_dict())


def resumed(recipe: Recipe, state: dict[str, Any]) -> tuple[Trainer, list[EpochResult]]:
    torch.manual_seed(123)  # whatever happened in between
    run = trainer(recipe)
    run.load_state_dict(state)
    return run, list(run.epochs())


def without_seconds(results: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0) for result in results]


@pytest.mark.parametrize("cut", [1, 6, 8, 11], ids=["first", "middle", "last of an epoch", "one before the last"])
@pytest.mark.parametrize("overrides", RESUMED.values(), ids=RESUMED)
def test_resume_after_any_step_is_exact(tiny: Recipe, overrides: dict[str, Any], cut: int) -> None:
    recipe = tiny.replace({"train.epochs": 3, "train.batch_size": 64, "schedule.warmup": 1, **overrides})
    if recipe.train.accumulate > 1:
        cut = -(-cut // 2)  # two steps an epoch instead of four
    whole = trainer(recipe)
    results = list(whole.epochs())
    second, rest = resumed(recipe, run_until(trainer(recipe), cut))
    assert without_seconds(rest) == without_seconds(results[-len(rest) :])
    assert equal(weights(whole.net), weights(second.net))
    assert equal(weights(whole.evaluated), weights(second.evaluated))
    assert torch.equal(whole.generator.get_state(), second.generator.get_state())


@pytest.mark.parametrize("overrides", RESUMED.values(), ids=RESUMED)
def test_resume_at_an_epochs_end_is_exact(tiny: Recipe, overrides: dict[str, Any]) -> None:
    recipe = tiny.replace({"train.epochs": 4, "schedule.warmup": 1, **overrides})
    whole = trainer(recipe)
    list(whole.epochs())
    first = trainer(recipe)
    first.train_epoch(), first.train_epoch()
    second, rest = resumed(recipe, first.state_dict())
    assert [r.epoch for r in rest] == [3, 4]
    assert equal(weights(whole.net), weights(second.net))
    assert equal(weights(whole.evaluated), weights(second.evaluated))


LOST = {
    "generator": lambda state: {**state, "generator": torch.Generator().manual_seed(77).get_state()},
    "order": lambda state: {**state, "under_way": {**state["under_way"], "order": torch.arange(256)}},
    "place": lambda state: {**state, "under_way": {**state["under_way"], "seen": 64}},
    "sums": lambda state: {**state, "under_way": {**state["under_way"], "loss_sum": torch.zeros(())}},
    "momentum": lambda state: {**state, "optimizers": [{}, {}]},
    "average": lambda state: {**state, "average": {**state["average"], "n_averaged": torch.tensor(0)}},
    "dropout's generator": lambda state: {**state, "torch_rng": torch.Generator().manual_seed(5).get_state()},
    "batch statistics": lambda state: {
        **state,
        "net": {name: torch.ones_like(v) if "running" in name else v for name, v in state["net"].items()},
    },
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_resume_without_a_part_of_the_state_differs(tiny: Recipe, lose: Callable[..., dict[str, Any]]) -> None:
    """The negative control: what the tests above save is needed, and they can tell."""
    both = {**RESUMED["muon with ema"], "spec.dropout.head": 0.2}
    recipe = tiny.replace({"train.epochs": 2, "train.batch_size": 64, **both})
    whole = trainer(recipe)
    results = list(whole.epochs())
    second, rest = resumed(recipe, lose(run_until(trainer(recipe), 2)))
    assert not (
        without_seconds(rest) == without_seconds(results)
        and equal(weights(whole.net), weights(second.net))
        and equal(weights(whole.evaluated), weights(second.evaluated))
    )


def test_a_resumed_run_takes_its_rates_from_the_recipe(tiny: Recipe) -> None:
    state = run_until(trainer(tiny), 1)
    slower = trainer(tiny.replace({"optim.lr": 0.01, "optim.weight_decay": 0.3}))
    slower.load_state_dict(state)
    usual = trainer(tiny)
    usual.load_state_dict(state)
    groups = [run.optimizers[0].param_groups[0] for run in (slower, usual)]
    assert groups[0]["lr"] == pytest.approx(groups[1]["lr"] / 10)
    assert groups[0]["weight_decay"] == 0.3
    usual.slow_down(0.5)
    usual.train_epoch(), slower.train_epoch()
    assert groups[1]["lr"] == pytest.approx(5 * groups[0]["lr"])


def test_easy_images_are_skipped_between_the_first_epoch_and_the_limit(tiny: Recipe) -> None:
    overrides = {"train.epochs": 4, "train.batch_size": 32, "train.skip_easy": 0.25, "train.skip_easy_until": 0.75}
    images = [result.images for result in trainer(tiny.replace(overrides)).epochs()]
    assert images == [256, 192, 192, 256]


@pytest.mark.parametrize("batch", [{"train.batch_size": 64}, {"train.batch_size": 60, "train.drop_last": True}])
def test_an_image_that_was_left_out_is_mirrored_when_its_turn_comes(
    batch: dict[str, Any], tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By epochs, an easy image that is left out of every other one would always be seen the same way round."""
    seen: dict[int, list[int]] = {}

    def note(images: Tensor, config: Any, generator: Any, *, coins: Tensor, epoch: int | Tensor, **_: Any) -> Tensor:
        for place, turn in zip(coins.tolist(), torch.as_tensor(epoch).expand(len(coins)).tolist(), strict=True):
            seen.setdefault(place, []).append(turn)
        return images

    monkeypatch.setattr(sys.modules[Trainer.__module__], "augment", note)  # resfit.train is a function
    run = trainer(tiny.replace({"train.epochs": 6, "train.skip_easy": 0.4, **batch}))
    run.coins = torch.arange(len(run.images))  # so that a batch tells its images' places
    assert sum(result.images for result in run.epochs()) < 6 * 256
    assert all(turns == list(range(len(turns))) for turns in seen.values())


class Small(Linear):
    """Runs out of memory with more than 20 images at a time."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(images)


def test_out_of_memory_halves_the_batches_and_keeps_the_step(tiny: Recipe) -> None:
    recipe = tiny.replace({"train.epochs": 2, "train.batch_size": 64, "augment.crop": 0, "train.accumulate": 2})
    notes: list[str] = []
    large, small = trainer(recipe, kind=Linear), trainer(recipe, kind=Small, on_note=notes.append)
    results = [list(run.epochs()) for run in (large, small)]
    assert [line.split(";")[0] for line in notes] == ["epoch 1: out of memory"] * 2
    torch.testing.assert_close(large.net.head.weight, small.net.head.weight)
    assert [r.loss for r in results[1]] == pytest.approx([r.loss for r in results[0]], rel=1e-4)
    assert [r.accuracy for r in results[1]] == pytest.approx([r.accuracy for r in results[0]], abs=0.01)
    again = trainer(recipe, kind=Small)
    again.load_state_dict(small.state_dict())
    assert again.pieces == small.pieces == 4


def test_mixed_batches_go_through_in_pieces_too(tiny: Recipe) -> None:
    run = trainer(tiny.replace({"augment.mixup": 0.2, "augment.cutmix": 1.0}), kind=Small)
    assert [result.images for result in run.epochs()] == [256] * 3
    assert run.pieces == 8


def test_no_piece_has_a_single_image(tiny: Recipe) -> None:
    """A norm cannot train on one image whose map is a single pixel."""
    run = trainer(tiny)
    run.pieces = 4
    assert [[len(piece) for piece in run._pieces(torch.zeros(n))] for n in (9, 7, 3)] == [[3, 2, 2, 2], [3, 2, 2], [3]]


def test_memory_for_not_even_two_images_ends_the_run(tiny: Recipe) -> None:
    class Smaller(Linear):
        def forward(self, images: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RunFailed, match=r"^out of memory with two images \(train.batch_size\): "):
        trainer(tiny, kind=Smaller).train_epoch()


def test_a_mixed_image_is_right_by_its_predicted_classs_part() -> None:
    logits, mixed = torch.eye(3), torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])
    assert _hits(logits, mixed).item() == pytest.approx(1.5)
    assert _hits(logits, torch.tensor([0, 1, 0])).item() == 2


def test_the_accuracy_on_patched_images_rises(tiny: Recipe) -> None:
    """A row of RICAP's shows four images, and none of them need be the one at its place."""
    recipe = tiny.replace({"augment.crop": 0, "augment.ricap": 0.05, "train.epochs": 8, "train.batch_size": 32})
    assert list(trainer(recipe).epochs())[-1].accuracy > 0.6


@pytest.mark.parametrize(("batch_size", "accumulate"), [(32, 2), (16, 4), (24, 3)])
def test_accumulated_batches_make_one_step(tiny: Recipe, batch_size: int, accumulate: int) -> None:
    plain = {"augment.crop": 0, "train.epochs": 2}
    one = trainer(tiny.replace({**plain, "train.batch_size": batch_size * accumulate}), kind=Linear)
    many = trainer(tiny.replace({**plain, "train.batch_size": batch_size, "train.accumulate": accumulate}), kind=Linear)
    list(one.epochs()), list(many.epochs())
    torch.testing.assert_close(one.net.head.weight, many.net.head.weight)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clip_bounds_a_step(tiny: Recipe, precision: str) -> None:
    step = {"optim.lr": 1.0, "optim.momentum": 0.0, "optim.weight_decay": 0.0, "schedule.name": "constant"}
    recipe = tiny.replace({**step, "train.clip": 0.01, "train.epochs": 1, "train.batch_size": 256})
    run = trainer(recipe, precision=precision)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
    before = torch.cat([p.detach().flatten().clone() for p in run.net.parameters()])
    run.train_epoch()
    moved = (torch.cat([p.detach().flatten() for p in run.net.parameters()]) - before).norm()
    assert moved == pytest.approx(0.01, rel=1e-3)


class Idle(nn.Module):
    """A network with a parameter that takes no part."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.used, self.idle = Linear(recipe), nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.used(images)


def test_a_parameter_that_no_gradient_reaches_stops_the_first_step(tiny: Recipe) -> None:
    with pytest.raises(AssertionError, match="no gradient reached idle"):
        trainer(tiny, kind=Idle).train_epoch()


def test_a_loss_is_looked_at_in_the_middle_of_a_long_epoch(tiny: Recipe) -> None:
    run = trainer(tiny.replace({"train.batch_size": 2, "augment.crop": 0}), kind=Linear)
    steps = []

    def poison(epoch: int, done: float) -> None:
        steps.append(done)
        with torch.no_grad():
            run.net.head.weight.fill_(torch.nan)

    run.on_step = poison
    with pytest.raises(Diverged):
        run.train_epoch()
    assert len(steps) <= 51 < len(run.images) // 2


def test_statistics_of_an_average_are_taken_at_the_last_size(tiny: Recipe) -> None:
    swa = {"average.name": "swa", "average.start": 0.5, "train.resize": [[0.0, 4], [0.5, 8]]}
    run = trainer(tiny.replace(swa))
    assert {tuple(batch.shape[-2:]) for batch in run._batches_apart()} == {(8, 8)}


@torch._dynamo.config.patch(recompile_limit=8)  # monkeypatch would lose the limit for the tests after it
def test_every_size_that_is_met_is_compiled_ahead_and_none_beyond_torchs_limit(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)  # what is asked for counts here
    sides = [[n / 5, side] for n, side in enumerate((4, 5, 6, 7, 8))]
    fields = {"train.compile": True, "train.resize": sides, "train.batch_size": 100, "train.skip_easy": 0.25}
    run, met = trainer(tiny.replace({**fields, "train.epochs": 5})), set()
    forward = run.forward
    run.forward = lambda images: met.add((len(images), images.shape[-1])) or forward(images)
    run.warm_up()
    ahead, _ = set(met), met.clear()
    list(run.epochs())
    assert ahead >= met
    assert torch._dynamo.config.recompile_limit >= len(ahead) > 8


def test_a_loss_that_is_not_finite_stops_loudly(tiny: Recipe) -> None:
    run = trainer(tiny.replace({"optim.lr": 1e30, "optim.momentum": 0.0, "schedule.name": "constant"}))
    with pytest.raises(RunFailed, match=r"^the training loss is not finite \(epoch \d\): lower optim.lr .*") as failure:
        list(run.epochs())
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["head.weight", "stem.norm.running_var"])
def test_a_weight_that_is_not_finite_is_seen_though_the_loss_is(tiny: Recipe, name: str) -> None:
    run = trainer(tiny.replace({"average.name": "ema"}))
    run.train_epoch()
    run.check_finite()
    for net in (run.net, run.average.module):
        value = net.state_dict()[name]
        old = value.clone()
        value[..., 0] = float("nan")
        with pytest.raises(Diverged, match="a weight is not finite"):
            run.check_finite()
        value.copy_(old)
    run.check_finite()


def test_resize_follows_progress(tiny: Recipe) -> None:
    run = trainer(tiny.replace({"train.resize": [[0.0, 4], [0.5, 8]], "train.epochs": 2}), kind=Linear)
    list(run.epochs())
    assert run.net.sides == [4, 4, 8, 8]


@pytest.mark.parametrize("side", [5, 8, 20])
def test_resizing_is_what_torch_interpolates(side: int) -> None:
    images = torch.randint(0, 256, (6, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(_resized(images, ((0.0, 4), (0.5, side)), 0.5), wanted)
    assert _resized(images, ((0.5, side),), 0.4) is images
    with torch.autocast("cpu", torch.bfloat16):  # the statistics of an average are estimated within one
        torch.testing.assert_close(_resized(images, ((0.0, 4), (0.5, side)), 0.5), wanted)


@pytest.mark.parametrize("schedule", [{"name": "multistep", "milestones": [1]}, {"name": "step", "period": 1}], ids=str)
def test_a_rate_falls_with_the_first_step_of_its_epoch(tiny: Recipe, schedule: dict[str, Any]) -> None:
    """Of 49 epochs too, where one of them is a share of the training that times 49 is less than one."""
    rates: list[float] = []
    run = trainer(tiny.replace({"train.epochs": 49, "schedule": schedule}))
    run.on_step = lambda epoch, done: rates.append(run.optimizers[0].param_groups[0]["lr"])
    run.train_epoch(), run.train_epoch()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_drop_last_leaves_the_partial_batch_out(tiny: Recipe) -> None:
    kept = trainer(tiny.replace({"train.batch_size": 100}))
    dropped = trainer(tiny.replace({"train.batch_size": 100, "train.drop_last": True}))
    all_there_is = trainer(tiny.replace({"train.batch_size": 1000, "train.drop_last": True}))
    assert [r.train_epoch().images for r in (kept, dropped, all_there_is)] == [256, 200, 256]


def test_a_last_image_alone_joins_the_batch_before_it(tiny: Recipe) -> None:
    """At a 1 x 1 map a norm has nothing to take the variance of."""
    stages = [{"blocks": 1, "channels": 8}] * 4
    run = trainer(tiny.replace({"train.batch_size": 51, "spec.stages": stages}))
    assert [len(batch) for batch in run._batches(torch.arange(256))] == [51, 51, 51, 51, 52]
    assert run.train_epoch().images == 256
    assert len(run._batches(torch.arange(257))) == 6
    dropped = trainer(tiny.replace({"train.batch_size": 51, "train.drop_last": True}))
    assert [len(batch) for batch in dropped._batches(dropped._left(torch.arange(256)))] == [51] * 5
    singles = trainer(tiny.replace({"train.batch_size": 1}))
    assert [len(batch) for batch in singles._batches(torch.arange(3))] == [1, 1, 1]


def test_every_image_is_seen_once_an_epoch(tiny: Recipe) -> None:
    run = trainer(tiny)
    for _ in range(2):
        seen = torch.cat([index for group in run._step_groups(run._begin_epoch().order) for index in group])
        assert seen.sort().values.tolist() == list(range(256))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [8, 32, 53, 200])
def test_an_epoch_goes_on_with_batches_of_another_size(
    tiny: Recipe, batch_size: int, drop_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOff(Exception):
        pass

    def cut_off(epoch: int, done: float) -> None:
        if done >= 0.3:
            raise CutOff

    seen, gradient = [], Trainer._backward
    monkeypatch.setattr(
        Trainer, "_backward", lambda run, index, *rest: (seen.append(index), gradient(run, index, *rest))[1]
    )
    tiny = tiny.replace({"train.epochs": 1, "train.drop_last": drop_last})
    began = trainer(tiny.replace({"train.batch_size": 32}), on_step=cut_off)
    with pytest.raises(CutOff):
        began.train_epoch()
    assert len(seen) == 3
    progress: list[float] = []
    resumed = trainer(tiny.replace({"train.batch_size": batch_size}), on_step=lambda epoch, done: progress.append(done))
    resumed.load_state_dict(began.state_dict())
    wanted = 256 - (256 - 96) % batch_size * drop_last
    assert resumed.train_epoch().images == wanted
    assert len(torch.cat(seen).unique()) == len(torch.cat(seen)) == wanted
    assert progress == sorted(progress)
    if wanted > 96:
        assert progress[0] > 0.3
        assert progress[-1] == 1.0


def test_a_whitening_stems_bias_stops_when_asked(tiny: Recipe) -> None:
    spec = {"spec.stem": {"kind": "whiten", "kernel": 2, "channels": 8}, "train.freeze_stem_after": 1}
    run = trainer(tiny.replace({**spec, "optim.bias_lr": 0.5}))
    bias = run.net.get_submodule("stem.conv").bias
    before, filters = bias.detach().clone(), run.net.get_submodule("stem.conv").weight.clone()
    run.train_epoch()
    after_one = bias.detach().clone()
    run.train_epoch()
    assert not torch.equal(before, after_one)
    assert torch.equal(after_one, bias)
    assert torch.equal(filters, run.net.get_submodule("stem.conv").weight)


def test_stages_keep_their_weights_from_when_they_are_frozen(tiny: Recipe) -> None:
    """Without momentum or decay of their own, and without a gradient that is computed in vain."""
    recipe = tiny.replace({"train.freeze": [[0.25, 0], [0.5, 1]], "train.epochs": 4, "optim.weight_decay": 0.1})
    run = trainer(recipe)

    def moved() -> set[str]:
        before = {name: value.detach().clone() for name, value in run.net.named_parameters()}
        run.train_epoch()
        changed = {name for name, value in run.net.named_parameters() if not torch.equal(value, before[name])}
        return {".".join(name.split(".")[: 2 if name.startswith("stages") else 1]) for name in changed}

    assert moved() == {"stem", "stages.0", "stages.1", "head"}
    assert moved() == {"stages.0", "stages.1", "head"}
    statistics = run.net.get_submodule("stages.0.0.branch.norm1").running_mean.clone()
    assert moved() == {"stages.1", "head"} == moved()
    assert not torch.equal(statistics, run.net.get_submodule("stages.0.0.branch.norm1").running_mean)


def test_a_frozen_stage_stays_frozen_on_resume(tiny: Recipe) -> None:
    recipe = tiny.replace({"train.freeze": [[0.5, 1]], "train.epochs": 4})
    whole, cut, resumed = trainer(recipe), trainer(recipe), trainer(recipe)
    list(whole.epochs())
    for _ in range(3):
        cut.train_epoch()
    resumed.load_state_dict(cut.state_dict())
    resumed.train_epoch()
    assert equal(weights(whole.net), weights(resumed.net))
    back, at_one = trainer(recipe), trainer(recipe)
    at_one.train_epoch()
    back.load_state_dict(cut.state_dict())
    back.train_epoch()
    # As a rollback does: what was frozen since is trained again.
    back.load_state_dict(copy.deepcopy(at_one.state_dict()))
    back.train_epoch()
    at_one.train_epoch()
    assert equal(weights(at_one.net), weights(back.net))


def test_steps_are_told(tiny: Recipe) -> None:
    told: list[tuple[int, float]] = []
    trainer(tiny, on_step=lambda epoch, done: told.append((epoch, done))).train_epoch()
    assert told == [(1, 0.5), (1, 1.0)]


def test_telling_and_averaging_change_no_weight(tiny: Recipe) -> None:
    plain, watched = trainer(tiny), trainer(tiny.replace({"average.name": "ema"}), on_step=lambda epoch, done: None)
    list(plain.epochs()), list(watched.epochs())
    assert equal(weights(plain.net), weights(watched.net))
    assert not equal(weights(watched.net), weights(watched.evaluated))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precisions_learn(tiny: Recipe, precision: str) -> None:
    recipe = tiny.replace({"augment.crop": 0, "train.epochs": 6, "train.batch_size": 32})
    results = list(trainer(recipe, precision=precision).epochs())
    assert results[-1].accuracy > 0.8


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tiny: Recipe) -> None:
    plain, compiled = trainer(tiny), trainer(replace(tiny, train=replace(tiny.train, compile=True)))
    a, b = list(plain.epochs()), list(compiled.epochs())
    assert b[-1].loss == pytest.approx(a[-1].loss, rel=1e-3)
    assert plain.net.state_dict().keys() == compiled.net.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("drop_last", [True, False])
def test_nothing_is_compiled_after_the_warm_up(tiny: Recipe, drop_last: bool) -> None:
    """Neither for another size of images or batch, nor for a stem or a stage that is no longer trained."""
    torch.compiler.reset()
    stem = {"spec.stem": {"kind": "whiten", "kernel": 2, "channels": 8}, "train.freeze_stem_after": 1}
    changes = {"train.resize": [[0.0, 4], [0.5, 8]], "train.freeze": [[0.7, 1]], "train.epochs": 4}
    batches = {"train.batch_size": 100, "train.drop_last": drop_last}
    run = trainer(tiny.replace({**stem, **changes, **batches, "train.compile": True}))
    run.warm_up()
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled >= 4
    list(run.epochs())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_refactoring_keeps_the_loss(tiny: Recipe) -> None:
    """Losses of 20 steps, as committed; regenerate with `python tests/golden/regenerate_losses.py`."""
    assert twenty_losses(tiny) == pytest.approx(json.loads(LOSSES.read_text()), rel=5e-3)
