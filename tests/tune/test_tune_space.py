"""Spaces: what may vary, how drawn values become recipes, and a line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from resfit.errors import BadInput
from resfit.recipe import Recipe, SamConfig, get_recipe
from resfit.tune.space import Dimension, Space, get_space


def write(tmp_path: Path, space: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def test_drawn_values_go_where_the_paths_say(tiny: Recipe, tmp_path: Path) -> None:
    space = get_space(
        write(
            tmp_path,
            {
                "spec.stages.*.kernel": {"choices": [1, 5]},
                "spec.stages.0.channels": {"low": 4, "high": 16, "step": 4},
                "spec.se": {"choices": [None, {"reduction": 4}]},
                "spec.se.bias": {"choices": [True, False]},
                "optim.lr": {"low": "1e-5", "high": 1, "log": True},
            },
        )
    )
    space.check(tiny)
    se = space.dimensions["spec.se"]
    assert se.labels == (None, '{"reduction": 4}')
    assert (space.dimensions["spec.stages.0.channels"].whole, space.dimensions["optim.lr"].whole) == (True, False)
    recipe = space.apply(tiny, {"spec.stages.*.kernel": 5, "spec.se": '{"reduction": 4}', "optim.lr": 0.25})
    assert [stage.kernel for stage in recipe.spec.stages] == [5, 5]
    assert recipe.spec.se is not None and recipe.spec.se.reduction == 4 and recipe.optim.lr == 0.25
    assert recipe.train == tiny.train


def test_fields_that_stay_unwritten_at_their_default_can_vary(tiny: Recipe, tmp_path: Path) -> None:
    drawn = {"augment.ricap": 0.5, "spec.stages.*.inner": 4, "optim.sam.rho": 0.5, "spec.dropout.path": 0.5}
    space = get_space(write(tmp_path, {path: {"choices": [value]} for path, value in drawn.items()}))
    space.check(tiny)
    assert space.apply(tiny, {}) == tiny
    recipe = space.apply(tiny, drawn)
    assert (recipe.augment.ricap, recipe.spec.dropout.path, recipe.optim.sam) == (0.5, 0.5, SamConfig(rho=0.5))
    assert [stage.inner for stage in recipe.spec.stages] == [4, 4]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optim.lrr": {"low": 1, "high": 2}}, r"no such field in tiny \(mine: optim.lrr\)"),
        ({"spec.stages.7.kernel": {"choices": [1, 3]}}, "no such field"),
        (
            {"optim.name": {"choices": ["adma", "sgd"]}},
            r"mine: 'adma' is not allowed \(optim.name\): did you mean adam",
        ),
        ({"train.batch_size": {"low": 0.5, "high": 8.5}}, r"0.5 is not a whole number \(train.batch_size\)"),
        ({"optim.lr": {"low": 1, "high": 1}}, r"from 1 to 1 \(optim.lr.high\): give a number above low"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, r"from 0 on a logarithmic scale \(optim.lr.low\)"),
        ({"optim.lr": {"low": 1, "high": 2, "step": 0}}, r"step is 0 \(optim.lr.step\)"),
        ({"optim.lr": {"low": 1}}, "neither choices nor a range"),
        ({"optim.lr": {"low": 1, "choices": [1]}}, "both a range and choices"),
        ({"optim.lr": {"choices": [1, 1]}}, "twice"),
        ({"optim.lr": {"from": 1, "to": 2}}, r"unknown field \(optim.lr.from\)"),
        ([], "not a space"),
        ({}, "not a space"),
    ],
)
def test_mistakes_are_named(tiny: Recipe, tmp_path: Path, space: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        get_space(write(tmp_path, space)).check(tiny)


def test_values_that_only_others_make_wrong_are_left_to_the_trial(tiny: Recipe, tmp_path: Path) -> None:
    space = get_space(write(tmp_path, {"spec.pool.size": {"choices": [2, 64]}}))
    space.check(tiny)
    with pytest.raises(BadInput, match="a window of 64 pixels"):
        space.apply(tiny, {"spec.pool.size": 64})


def test_the_space_of_report_002() -> None:
    space, recipe = get_space("seed002"), get_recipe("seed002")
    space.check(recipe)
    assert len(space.dimensions) == 10
    best = {
        "spec.stem.channels": 16,
        "spec.stages.0.channels": 32,
        "spec.stages.1.channels": 128,
        "spec.stages.2.channels": 256,
        "spec.stages.*.kernel": 3,
        "spec.shortcut.kernel": 1,
        "spec.pool.size": 4,
        "optim.lr": 0.000371679,
        "optim.name": "adam",
        "train.batch_size": 16,
    }
    assert space.apply(recipe, best) == recipe
    for path, value in best.items():
        dimension = space.dimensions[path]
        assert value in dimension.choices or dimension.low < value < dimension.high  # type: ignore[operator]


def test_a_field_is_searched_or_given() -> None:
    space = Space(name="mine", dimensions=dict.fromkeys(["spec.stages.*.kernel", "spec.se"], Dimension(low=1, high=3)))
    space.refuse_fixed(["spec.stages", "spec.stages.0.channels", "optim.lr", "budget"])
    for field in ("spec.stages.0.kernel", "spec.se", "spec.se.reduction"):
        with pytest.raises(BadInput, match=rf"this field is varied by the search \(--{field}; mine: spec.s"):
            space.refuse_fixed([field])


def test_an_unknown_space_is_named() -> None:
    with pytest.raises(BadInput, match=r"unknown space \(seed02\): did you mean seed002\?"):
        get_space("seed02")


def test_plain_data_reads_back(tmp_path: Path) -> None:
    dimensions = {"optim.lr": Dimension(low=0.1, high=1.0, log=True), "optim.name": Dimension(choices=("adam", "sgd"))}
    space = Space(name="mine", dimensions=dimensions)
    assert get_space(write(tmp_path, space.to_dict())) == space


@pytest.mark.parametrize("pair", [("optim.lr", "optim"), ("spec.stages.0.blocks", "spec.stages.*.blocks")], ids=str)
def test_a_value_that_would_be_lost_is_refused(pair: tuple[str, str]) -> None:
    space = dict.fromkeys(pair, Dimension(low=1, high=3))
    with pytest.raises(BadInput, match=r"would overwrite .* \(lost\): list it first"):
        Space(name="lost", dimensions=space)
    Space(name="kept", dimensions=dict(reversed(space.items())))
