"""Study files: axes and points to recipes, and a clear line for every mistake. The shipped ones as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.tiny_recipe import TINY
from resfit.cost import cost
from resfit.errors import BadInput
from resfit.recipe import get_recipe
from resfit.scale import fitted
from resfit.study.plan import Study, get_study, study_names

DATA = TINY["data"]


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def test_axes_give_their_product_and_points_stand_alone(base: str) -> None:
    axes = {
        "batch": {32: {"train.batch_size": 32}, 64: {"train.batch_size": 64}},
        "rate": {"low": {"optim.lr": 0.01}, "high": {}},
    }
    study = Study(name="s", recipe=base, baseline="32-low", axes=axes)
    recipes = study.recipes()
    assert list(recipes) == ["32-low", "32-high", "64-low", "64-high"]
    assert [(r.train.batch_size, r.optim.lr) for r in recipes.values()] == [
        (32, 0.01),
        (32, 0.1),
        (64, 0.01),
        (64, 0.1),
    ]
    assert all(recipe.name == name for name, recipe in recipes.items())
    assert recipes["64-low"].description.endswith("with train.batch_size 64, optim.lr 0.01")
    listed = Study(name="s", recipe=base, baseline="plain", points={"plain": {}, "fast": {"optim.lr": 0.5}})
    assert [recipe.optim.lr for recipe in listed.recipes().values()] == [0.1, 0.5]


def test_a_point_may_start_from_another_recipe(base: str) -> None:
    study = Study(name="s", recipe=base, baseline="a", points={"a": {}, "b": {"recipe": "digits", "optim.lr": 0.3}})
    other = study.recipes()["b"]
    assert other.spec == get_recipe("digits").spec and other.optim.lr == 0.3 and other.name == "b"


def test_overrides_hold_for_all_points_ahead_of_their_own(base: str) -> None:
    study = Study(name="s", recipe=base, baseline="a", points={"a": {}, "b": {"optim.lr": 0.5}})
    recipes = study.recipes({"optim.lr": 0.2, "optim.momentum": 0.5})
    assert [(r.optim.lr, r.optim.momentum) for r in recipes.values()] == [(0.2, 0.5), (0.5, 0.5)]


def test_no_point_drops_an_override_unsaid(base: str) -> None:
    study = Study(name="s", recipe=base, baseline="a", points={"a": {}, "b": {"augment": {"crop": 2}}})
    assert study.recipes({"optim.lr": 0.5})["b"].augment.crop == 2
    with pytest.raises(BadInput, match=r"point b: the point replaces all of augment \(--augment.cutout\): set it"):
        study.recipes({"augment.cutout": 8})


def test_points_of_different_data_sets_are_refused(base: str) -> None:
    study = Study(name="s", recipe=base, baseline="a", points={"a": {}, "b": {"data.name": "folder"}})
    with pytest.raises(BadInput, match=r"^points on different images cannot be compared \(s: data.name\): give all"):
        study.recipes()


def test_a_point_s_network_may_be_fitted_to_a_budget() -> None:
    points = {"a": {}, "b": {"fit": "20k", "optim.lr": 0.3}, "c": {"recipe": "folder", "data": DATA, "fit": 500_000}}
    study = Study(name="s", recipe="digits", baseline="a", points=points)
    found = study.recipes({"data": DATA}, epochs=1)
    assert found["a"].spec == get_recipe("digits").spec
    assert found["b"].spec == fitted(get_recipe("digits"), 20_000).spec
    assert (found["b"].name, found["b"].budget, found["b"].optim.lr) == ("b", 20_000, 0.3)
    assert found["b"].description.startswith("digits with ")
    assert found["b"].description.endswith("fit 20k, optim.lr 0.3")
    assert found["c"].spec == fitted(get_recipe("folder"), 500_000).spec
    assert all("scaled" in recipe.deviations[-1] for recipe in found.values())
    assert study.settings()["b"] == points["b"]


def test_epochs_and_fraction_scale_every_point_alike(base: str) -> None:
    points = {
        "a": {},
        "long": {"train.epochs": 6},
        "steps": {"schedule.name": "multistep", "schedule.milestones": [1.5]},
    }
    recipes = Study(name="s", recipe=base, baseline="a", points=points).recipes(epochs=1, fraction=0.5)
    assert [recipe.train.epochs for recipe in recipes.values()] == [1, 2, 1]
    assert recipes["steps"].schedule.milestones == (0.5,)
    assert {recipe.data.fraction for recipe in recipes.values()} == {0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": {"a": {"optim.lrr": 1}}}, r"s, point a: unknown field \(optim.lrr\): did you mean lr\?"),
        ({"points": {"a": {"optim.lr": "fast"}}}, r"s, point a: 'fast' is not a number \(optim.lr\)"),
        ({"points": {"a": {"spec.stages.0.channels": 4096}}}, "s, point a: .* over the budget"),
        ({"points": {"a": {"fit": "much"}}}, r"s, point a: 'much' is not a count \(fit\)"),
        (
            {"points": {"a": {"fit": "20k", "budget": 9}}},
            r"s, point a: fit already sets the budget \(fit, budget\): leave one",
        ),
        ({"points": {"a": {"fit": 9}}}, "s, point a: no network of .* has 9 parameters or less"),
        ({"points": {"b": {}}}, r"no such point \(s: baseline a\)"),
        ({"points": {"a": 3}}, r"3 is not a mapping \(points.a\)"),
        ({"points": {"a": {}, True: {}}}, r"True is not a name \(study\): put it in quotes"),
        ({"points": {"a": {}, "x/y": {}}}, r"point x/y: name is 'x/y'"),
        ({"points": {"a": {}}, "axes": {"x": {"a": {}}}}, r"a study needs either axes or points \(s\): give one"),
        ({"axes": {"x": {"a": {}, "a-b": {}}, "y": {"c": {}, "b-c": {}}}}, r"two points are called a-b-c"),
        (
            {"axes": {"x": {"a": {"lr": 1}}, "y": {"c": {"lr": 2}}}},
            r"two axes set lr \(s, point a-c\)",
        ),
        (
            {"axes": {"x": {"a": {"optim.lr": 1}}, "y": {"c": {"optim": {"name": "adam"}}}}},
            r"two axes set optim.lr \(s, point a-c\)",
        ),
        ({"axes": {"x": {"a": {}}, "y": {}}}, r"an axis without values \(s: axes\)"),
        ({"points": {"a": {}}, "runs": 0}, r"runs is 0"),
        ({"points": {"a": {}}, "name": "../s"}, r"name is '../s'"),
    ],
)
def test_mistakes_are_named(base: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Study(**{"name": "s", "recipe": base, "baseline": "a", **fields}).recipes()  # type: ignore[arg-type]


def test_files_are_read_by_path_and_by_name(base: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": base, "baseline": "a", "points": {"a": {}}}))
    assert get_study(path).name == "mine"
    with pytest.raises(BadInput, match=r"unknown study \(seed01\): did you mean seed001\?"):
        get_study("seed01")
    path.write_text("- a\n- b\n")
    with pytest.raises(BadInput, match="not a study"):
        get_study(path)
    path.write_text("recipes: x\n")
    with pytest.raises(BadInput, match=r"unknown field \(recipes\): did you mean recipe\?"):
        get_study(path)


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_fits_its_budget_at_any_scale(name: str) -> None:
    study = get_study(name)
    for recipes in (study.recipes(), study.recipes(epochs=2, fraction=0.1)):
        assert len(recipes) > 1 and study.baseline in recipes
        assert all(cost(recipe.spec).params <= 5_000_000 for recipe in recipes.values())
        assert all(recipe.data.val > 0 for recipe in recipes.values())
        configs = [{**r.to_dict(), "name": "", "description": ""} for r in recipes.values()]
        assert all(configs.count(config) == 1 for config in configs), "two points are the same"


def test_the_studies_of_the_reports_are_there() -> None:
    grid = get_study("seed001").recipes()
    assert len(grid) == 4 * 4 * 3
    assert {recipe.train.batch_size for recipe in grid.values()} == {32, 64, 128, 256}
    counts = {cost(recipe.spec).params for recipe in grid.values()}
    assert counts == {2_777_674, 2_797_610, 4_366_250, 4_977_226}
    ablation = get_study("seed001-ablation").recipes()
    assert {(r.spec.dropout.block, r.optim.weight_decay) for r in ablation.values()} == {
        (0, 0),
        (0.25, 0),
        (0, 5e-4),
        (0.25, 5e-4),
    }
    for name in ("seed002-se", "seed004-se"):
        assert [recipe.spec.se is None for recipe in get_study(name).recipes().values()] == [True, False]
    assert {r.schedule.name for r in get_study("schedules").recipes().values()} == {
        "cosine",
        "step",
        "multistep",
        "constant",
    }
    assert {recipe.train.clip for recipe in get_study("clipping").recipes().values()} == {None, 2.0}
    assert {"none", "crop", "flip", "rotation", "blur", "jitter"} <= get_study("augmentations").recipes().keys()


def test_listing_studies_needs_no_torch() -> None:
    code = "import sys; from resfit.cli import main; main(['study', '--list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(name in done.stdout for name in study_names())
