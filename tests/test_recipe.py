"""A recipe is complete, checked as a whole, and comes back from its file."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from resfit.budget import judge
from resfit.errors import BadField, BadInput
from resfit.recipe import OptimConfig, Recipe, ScheduleConfig, TrainConfig, get_recipe, recipe_names
from resfit.spec import PoolSpec, StageSpec

SPEC = {"stages": [{"blocks": 1, "channels": 8}]}


def complaint(**values: object) -> str:
    with pytest.raises(BadInput) as caught:
        Recipe.from_dict({"name": "r", "spec": SPEC, **values})
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_shipped_recipes_are_these():
    seeds = ["seed000", "seed001a", "seed001b", "seed001c", "seed001d", "seed002", "seed003", "seed004"]
    assert set(recipe_names()) >= {"digits", "folder", "cifar10-94", *seeds}
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_described_fits_and_comes_back_from_yaml(name, tmp_path):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert judge(recipe.spec, recipe.budget).fits
    (tmp_path / "copy.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(tmp_path / "copy.yaml") == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_recipes_of_the_reports_say_where_they_depart_from_them():
    assert all(get_recipe(name).deviations for name in recipe_names() if name.startswith("seed"))


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(BadInput, match=r"unknown recipe \(seed01d\): did you mean seed001d\?"):
        get_recipe("seed01d")


def test_a_recipe_file_is_named_after_the_file_unless_it_says_otherwise(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("spec: {stages: [{blocks: 1, channels: 8}]}")
    assert get_recipe(path).name == "mine"
    path.write_text("name: other\nspec: {stages: [{blocks: 1, channels: 8}]}")
    assert get_recipe(path).name == "other"


def test_a_mistake_in_a_recipe_file_is_told_with_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("spec: {stages: [{blocks: 1, channels: 8}]}\ntrain: {epoch: 3}")
    with pytest.raises(BadInput, match=rf"^{path}: unknown field \(train.epoch\)"):
        get_recipe(path)


@pytest.mark.parametrize(("text", "budget"), [("500k", 500_000), ("2.5M", 2_500_000), ("5_000_000", 5_000_000)])
def test_a_budget_in_a_file_is_read_as_people_write_it(tmp_path, text, budget):
    path = tmp_path / "mine.yaml"
    path.write_text(f"budget: {text}\nspec: {{stages: [{{blocks: 1, channels: 8}}]}}")
    assert get_recipe(path).budget == budget
    path.write_text("budget: plenty\nspec: {stages: [{blocks: 1, channels: 8}]}")
    with pytest.raises(BadInput, match=r"^.*mine.yaml: 'plenty' is not a count \(budget\): give one such as 500k"):
        get_recipe(path)


@pytest.mark.parametrize("text", ["", "- a", "just text"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(BadInput, match="not a recipe"):
        get_recipe(tmp_path / "r.yaml")


def test_overrides_change_what_they_name_and_nothing_else():
    recipe = get_recipe("seed001d", {"train.epochs": 3, "spec.stages.0.blocks": 1})
    assert recipe.train.epochs == 3
    assert recipe.spec.stages[0].blocks == 1
    assert recipe.replace({"train.epochs": 200, "spec.stages.0.blocks": 2}) == get_recipe("seed001d")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"spec.num_classes": 100}, r"^100 classes, but cifar10 has 10 \(spec.num_classes\): give 10$"),
        ({"spec.input.channels": 1}, r"^cifar10 has no 1-channel images \(spec.input.channels\): give 3$"),
        ({"augment.crop_mode": "reflect", "augment.crop": 32}, r"^augment.crop is 32 \(augment.crop\): give less than"),
    ],
    ids=str,
)
def test_what_a_run_could_only_stumble_over_is_refused(overrides, line):
    with pytest.raises(BadInput, match=line):
        get_recipe("seed001d", overrides)
    get_recipe("seed001d", {"augment.crop_mode": "reflect", "augment.crop": 31})


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: OptimConfig(name="SGD"), r"^'SGD' is not allowed \(name\): .*sgd"),
        (lambda: replace(OptimConfig(), nesterov=1), r"^1 is not allowed \(nesterov\): give true or false"),
        (lambda: TrainConfig(epochs=1.5), r"^1.5 is not allowed \(epochs\): give a whole number"),
        (lambda: ScheduleConfig(warmup="soon"), r"^'soon' is not allowed \(warmup\): give a number"),
        (lambda: PoolSpec(kind="mean"), r"^'mean' is not allowed \(kind\)"),
        (lambda: PoolSpec(size="whole"), r"^'whole' is not allowed \(size\): choose from global"),
        (lambda: replace(get_recipe("digits").spec, branches=3), r"^3 is not allowed \(branches\)"),
        (lambda: StageSpec(blocks=1, channels=8, block="bottlenek"), r"^'bottlenek' .*: did you mean bottleneck\?"),
    ],
)
def test_what_is_made_in_python_is_checked_as_a_file_is(make, line):
    with pytest.raises(BadField, match=line):
        make()


@pytest.mark.parametrize(("teacher", "line"), [(3, r"\(distill.teacher\)"), (["a", 3], r"3 is not text .*teacher.1")])
def test_a_teacher_is_text_or_a_list_of_it(teacher, line):
    with pytest.raises(BadInput, match=line) as caught:
        get_recipe("seed001d", {"distill.teacher": teacher})
    assert "class" not in str(caught.value)


def test_a_misspelt_override_is_answered_with_the_nearest():
    with pytest.raises(BadInput, match=r"\(train\.epoch\): did you mean epochs\?"):
        get_recipe("seed001d", {"train.epoch": 3})


@pytest.mark.parametrize(
    ("section", "values", "field", "allowed"),
    [
        ("data", {"name": "cifar"}, "name", "cifar10"),
        ("data", {"val": -1}, "val", "a count or a fraction"),
        ("data", {"val": 1.5}, "val", "a count or a fraction"),
        ("data", {"val": float("inf")}, "val", "a count or a fraction"),
        ("data", {"val": float("nan")}, "val", "a count or a fraction"),
        ("data", {"val": 10**400}, "val", "a smaller one"),
        ("train", {"freeze_stem_after": float("nan")}, "freeze_stem_after", "a number of epochs"),
        ("schedule", {"name": "restarts", "period": 1e-12}, "period", "a number of epochs"),
        ("augment", {"rotate": 181}, "rotate", "from 0 to 180"),
        ("augment", {"translate": 1.1}, "translate", "from 0 to 1"),
        ("augment", {"contrast": -0.1}, "contrast", "from 0 to 1"),
        ("augment", {"crop": -1}, "crop", "a number from 0 to below 1000"),
        ("augment", {"mixup": float("nan")}, "mixup", "a number from 0 to below 1000"),
        ("augment", {"ricap": 0.3, "mixup": 0.2}, "ricap", "leave mixup and cutmix out"),
        ("init", {"filters": "zeros"}, "filters", "he"),
        ("optim", {"lr": 0}, "lr", "a number above 0"),
        ("optim", {"lr": float("inf")}, "lr", "a number above 0"),
        ("optim", {"bias_lr": -1}, "bias_lr", "a number above 0"),
        ("optim", {"momentum": 1}, "momentum", "below 1"),
        ("optim", {"betas": [0.9, 1]}, "betas", "below 1"),
        ("optim", {"weight_decay": -1}, "weight_decay", "0 or a number above it"),
        ("optim", {"nesterov": True, "momentum": 0}, "nesterov", "a momentum above 0"),
        ("schedule", {"warmup": -1}, "warmup", "a number of epochs"),
        ("schedule", {"final": 2}, "final", "a fraction of the peak"),
        ("schedule", {"name": "step"}, "period", "a number of epochs"),
        ("schedule", {"name": "restarts", "period": 0}, "period", "a number of epochs"),
        ("schedule", {"growth": 0.5}, "growth", "from 1 to 100"),
        ("schedule", {"gamma": 0}, "gamma", "above 0, at most 1"),
        ("schedule", {"name": "multistep"}, "milestones", "at least one epoch"),
        ("schedule", {"name": "multistep", "milestones": [-3]}, "milestones", "0 or above"),
        ("schedule", {"name": "multistep", "milestones": [float("nan")]}, "milestones", "0 or above"),
        ("schedule", {"name": "multistep", "milestones": [float("inf")]}, "milestones", "0 or above"),
        ("schedule", {"period": float("inf")}, "period", "a number of epochs"),
        ("average", {"decay": 1}, "decay", "below 1"),
        ("average", {"start": 1}, "start", "below 1"),
        ("optim", {"sam": {"rho": 0}}, "sam.rho", "a number above 0"),
        ("distill", {"teacher": ""}, "teacher", "a run folder"),
        ("distill", {"teacher": []}, "teacher", "a run folder"),
        ("distill", {"teacher": "t", "weight": 0}, "weight", "above 0, at most 1"),
        ("distill", {"teacher": "t", "temperature": 0}, "temperature", "a number above 0"),
        ("train", {"epochs": 0}, "epochs", "at least 1"),
        ("train", {"accumulate": 0}, "accumulate", "at least 1"),
        ("train", {"label_smoothing": 1}, "label_smoothing", "below 1"),
        ("train", {"clip": 0}, "clip", "a number above 0"),
        ("train", {"patience": 0}, "patience", "at least 1"),
        ("train", {"resize": [[0.5, 24], [0.2, 32]]}, "resize", "increasing fractions"),
        ("train", {"resize": [[0.0, 2]]}, "resize", "at least 4 pixels"),
        ("evaluate", {"every": 0}, "every", "at least 1"),
        ("evaluate", {"selection": "best"}, "selection", "best-"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_rule(section, values, field, allowed):
    line = complaint(**{section: values})
    assert f"({section}.{field})" in line
    assert allowed in line.split(f"({section}.{field})")[1]


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        (
            {"schedule": {"name": "multistep", "milestones": [10, 20]}},
            "milestones at 20 are never reached in 20 epochs",
        ),
        ({"schedule": {"warmup": 20}}, "a warm-up of 20 epochs never ends in 20 epochs"),
        ({"train": {"resize": [[0.0, 16]]}}, "training ends with images of 16x16"),
        ({"augment": {"cutmix": 1.0}, "train": {"skip_easy": 0.4}}, "the loss of a mixed image says little"),
        ({"augment": {"cutmix": 1.0}}, None),
        ({"schedule": {"name": "multistep", "milestones": [10, 19]}}, None),
        ({"schedule": {"warmup": 19}}, None),
        ({"train": {"resize": [[0.0, 16], [0.5, 32]]}}, None),
    ],
)
def test_what_is_seldom_meant_is_remarked_on(values, remark):
    plain = {"name": "r", "spec": SPEC, **values}
    found = Recipe.from_dict({**plain, "train": {**plain.get("train", {}), "epochs": 20}}).remarks()
    assert found == [] if remark is None else found[0].startswith(remark) and len(found) == 1


def test_few_steps_on_a_folder_are_remarked_on():
    recipe = get_recipe("folder", {"train.epochs": 20})  # batches of 125
    assert recipe.remarks(600) == ["600 images make 100 steps in 20 epochs: more --epochs may help much"]
    assert recipe.remarks(4500) == recipe.remarks() == get_recipe("digits").remarks(600) == []


def test_no_shipped_recipe_is_remarked_on():
    assert [get_recipe(name).remarks() for name in recipe_names()] == [[]] * len(recipe_names())


def test_images_are_resized_only_where_the_classifier_gets_as_many_features():
    windowed = {**SPEC, "pool": {"kind": "avg", "size": 8}}
    line = complaint(spec=windowed, train={"resize": [[0.0, 16], [0.5, 32]]})
    assert "16 (train.resize): give sides that give the classifier the same number of features" in line
    Recipe.from_dict({"name": "r", "spec": SPEC, "train": {"resize": [[0.0, 16], [0.5, 32]]}})


def test_stages_are_frozen_in_order_and_only_those_that_there_are():
    Recipe.from_dict({"name": "r", "spec": SPEC, "train": {"freeze": [[0.5, 0], [0.9, len(SPEC["stages"])]]}})
    assert "the number of stages" in complaint(train={"freeze": [[0.5, len(SPEC["stages"]) + 1]]})
    assert "increasing fractions" in complaint(train={"freeze": [[0.5, 1], [0.2, 1]]})
    assert "increasing fractions" in complaint(train={"freeze": [[1.0, 1]]})


def test_only_a_whitening_stem_is_frozen():
    assert "a stem of kind whiten" in complaint(train={"freeze_stem_after": 1})


@pytest.mark.parametrize(
    ("values", "field"),
    [({"evaluate": {"selection": "best-val"}}, "evaluate.selection"), ({"train": {"patience": 5}}, "train.patience")],
)
def test_what_looks_at_a_validation_split_needs_one(values, field):
    assert complaint(data={"val": 0}, **values) == f"there are no validation images to look at ({field}): give data.val"
    assert Recipe.from_dict({"name": "r", "spec": SPEC, "data": {"val": 0.1}, **values})
    assert Recipe.from_dict({"name": "r", "spec": SPEC, "data": {"name": "folder", "val": 0}, **values})


def test_norms_without_a_gain_cannot_begin_at_zero():
    """A gain of zero that is never trained would leave the residuals dead."""
    values = {"init": {"zero_last_norm": True}, "spec": {**SPEC, "norm": {"gain": False}}}
    assert "(init.zero_last_norm)" in complaint(**values)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "../up", "c:", "a\nb", "a\0", "a\x1b[1m"])
def test_a_name_that_cannot_be_a_folder_is_refused(name):
    assert complaint(name=name).startswith(f"name is {name!r}")


def test_a_budget_is_at_least_one_parameter():
    assert "(budget)" in complaint(budget=0)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("digits").budget = 1


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"train.skip_easy": 0.51}, r"\(train.skip_easy\): give a share from 0 to 0.5"),
        ({"spec.input.channels": 5}, r"digits has no 5-channel images \(spec.input.channels\): give 1 or 3"),
    ],
)
def test_what_cannot_be_trained_is_refused_ahead(overrides, line):
    with pytest.raises(BadInput, match=line):
        get_recipe("digits", overrides)
