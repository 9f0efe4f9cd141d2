"""Plain data to frozen dataclasses and back: every mistake is one line that names its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.strategies import PLAIN, mutations
from resfit.errors import BadField, BadInput
from resfit.fields import from_plain, override, parse_yaml, read_yaml, to_plain, write_yaml
from resfit.recipe import Recipe, get_recipe
from resfit.record import RunRecord
from resfit.spec import NetSpec


@dataclass(frozen=True, kw_only=True)
class Leaf:
    count: int = 1
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 0:
            raise BadField(f"count is {self.count}", "count", "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...] = ()
    leaf: Leaf = field(default_factory=Leaf)
    on: bool = False
    kind: Literal["oak", "elm"] = "oak"
    size: int | Literal["global"] = "global"
    val: int | float = 0
    pair: tuple[int, float] = (1, 2.0)
    maybe: float | None = None
    free: dict[str, Any] = field(default_factory=dict)


def read_text(folder: Path, text: str) -> object:
    (folder / "some.yaml").write_text(text, encoding="utf-8")
    return read_yaml(folder / "some.yaml")


def tree(**values: object) -> Tree:
    return from_plain(Tree, {"name": "t", **values})


def complaint(kind: type, data: object) -> str:
    """The one line that refuses `data`."""
    with pytest.raises(BadInput) as caught:
        from_plain(kind, data)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def test_plain_data_comes_back_as_it_went():
    value = Tree(name="t", leaves=(Leaf(count=2), Leaf()), size=4, val=0.1, maybe=3.0, free={"a": [1, {"b": None}]})
    plain = to_plain(value)
    assert plain["leaves"] == [{"count": 2, "rate": 0.5}, {"count": 1, "rate": 0.5}]
    assert from_plain(Tree, plain) == value


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"nmae": "x"}, "(nmae)", "did you mean name?"),
        ({"leaf": {"cuont": 2}}, "(leaf.cuont)", "did you mean count?"),
        ({"leaves": [{}, {"zzz": 2}]}, "(leaves.1.zzz)", "choose from count, rate"),
        ({"leaf": {"count": True}}, "(leaf.count)", "True is not a whole number"),
        ({"leaf": {"count": 1.0}}, "(leaf.count)", "1.0 is not a whole number"),
        ({"leaf": {"count": "1"}}, "(leaf.count)", "'1' is not a whole number"),
        ({"leaf": {"rate": "fast"}}, "(leaf.rate)", "'fast' is not a number"),
        ({"leaf": {"rate": False}}, "(leaf.rate)", "False is not a number"),
        ({"leaf": {"rate": None}}, "(leaf.rate)", "None is not a number"),
        ({"leaf": {"count": -1}}, "(leaf.count)", "count is -1"),
        ({"leaf": 3}, "(leaf)", "3 is not a mapping"),
        ({"leaves": {"count": 1}}, "(leaves)", "is not a list"),
        ({"leaves": "ab"}, "(leaves)", "'ab' is not a list"),
        ({"name": 3}, "(name)", "3 is not text"),
        ({"on": 1}, "(on)", "1 is not true or false"),
        ({"kind": "ok"}, "(kind)", "did you mean oak?"),
        ({"kind": ["oak"]}, "(kind)", "is not allowed"),
        ({"size": True}, "(size)", "True is not"),
        ({"val": "much"}, "(val)", "number"),
        ({"pair": [1]}, "(pair)", "give 2"),
        ({"pair": [1, 2.0, 3]}, "(pair)", "give 2"),
        ({"pair": [0.5, 2.0]}, "(pair.0)", "0.5 is not a whole number"),
        ({"maybe": "x"}, "(maybe)", "'x' is not a number"),
        ({"free": 3}, "(free)", "3 is not a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place(values, where, what):
    line = complaint(Tree, {"name": "t", **values})
    assert where in line
    assert what in line


def test_a_missing_field_is_named():
    assert complaint(Tree, {}) == "missing field (name): give it a value"


def test_a_misspelt_field_deep_in_a_spec_is_named_with_the_nearest():
    line = complaint(Recipe, {"name": "r", "spec": {"stages": [{"blocks": 1, "chanels": 8}]}})
    assert line == "unknown field (spec.stages.0.chanels): did you mean channels?"


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [("optim", {"betas": [1.0, 2.0]}, "betas"), ("train", {"resize": [[0.5, 2]]}, "resize")],
)
def test_the_place_of_a_refused_list_stands_after_its_values(section, values, field):
    line = complaint(Recipe, {"name": "r", "spec": {"stages": [{"blocks": 1, "channels": 8}]}, section: values})
    assert f"({section}.{field}): give" in line


def test_a_number_may_be_written_as_text_where_yaml_reads_it_as_text(tmp_path):
    assert from_plain(Leaf, read_text(tmp_path, "rate: 1e-4")).rate == 1e-4  # YAML 1.1 wants 1.0e-4
    assert type(from_plain(Leaf, {"rate": 1}).rate) is float


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"val": 5000}, "val", 5000),
        ({"val": 0.1}, "val", 0.1),
        ({"size": 4}, "size", 4),
        ({"size": "global"}, "size", "global"),
        ({"maybe": None}, "maybe", None),
        ({"maybe": 2}, "maybe", 2.0),
        ({"pair": (3, 4)}, "pair", (3, 4.0)),
        ({"leaves": []}, "leaves", ()),
    ],
)
def test_values_keep_the_kind_that_their_field_declares(values, field, expected):
    value = getattr(tree(**values), field)
    assert value == expected
    assert type(value) is type(expected)


def test_override_replaces_one_field_and_leaves_the_original():
    data = {"spec": {"stages": [{"blocks": 1}, {"blocks": 2}]}, "train": {"epochs": 3}}
    assert override(data, "train.epochs", 9)["train"] == {"epochs": 9}
    assert override(data, "spec.stages.1.blocks", 5)["spec"]["stages"] == [{"blocks": 1}, {"blocks": 5}]
    assert override(data, "spec.stages.0", "x")["spec"]["stages"] == ["x", {"blocks": 2}]
    assert override(data, "optim.lr", 0.1)["optim"] == {"lr": 0.1}
    assert data == {"spec": {"stages": [{"blocks": 1}, {"blocks": 2}]}, "train": {"epochs": 3}}


@pytest.mark.parametrize(
    "dotted", ["spec.stages.9.blocks", "spec.stages.-1.blocks", "spec.stages.²", "spec.", "..", ""]
)
def test_a_path_that_leads_nowhere_is_refused(dotted):
    with pytest.raises(BadInput):
        from_plain(Recipe, override(get_recipe("digits").to_dict(), dotted, 1))


def test_an_item_that_a_list_lacks_is_named():
    with pytest.raises(BadInput, match=r"no item 9 in a list of 2 \(stages\.9\.blocks\): give 0 to 1"):
        override({"stages": [{"blocks": 1}, {"blocks": 2}]}, "stages.9.blocks", 1)
    with pytest.raises(BadInput, match=r"no item 2 in a list of 2"):
        override({"stages": [{"blocks": 1}, {"blocks": 2}]}, "stages.2", {"blocks": 3})


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [1, 2\nc: 3", 3), ("a: 1\n\tb: 2", 2), ("a: *nowhere", 1), ("a: !!python/object:os.system x", 1)],
)
def test_broken_yaml_is_named_with_file_and_line(tmp_path, text, line):
    with pytest.raises(BadInput, match=rf"some\.yaml, line {line}\)") as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: \x00", "a: 2020-13-45", "[" * 1000, "a: !!timestamp nope", "a: !!bool maybe", 'a: !!int ""']
)
def test_yaml_that_breaks_the_parser_is_refused_as_well(tmp_path, text):
    with pytest.raises(BadInput, match=r"some\.yaml"):
        read_text(tmp_path, text)


@pytest.mark.parametrize("end", ["[*a20, *a20]", "&b [*b]", "&b {x: {y: *b}}"])
def test_aliases_that_stand_for_too_much_are_refused(tmp_path, end):
    """A million times a million values in half a kilobyte, and lists and mappings that hold themselves."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 21))]
    (tmp_path / "bomb.yaml").write_text("\n".join([*(lines if "a20" in end else []), f"stages: {end}"]))
    with pytest.raises(BadInput, match="aliases expand to too many values"):
        read_yaml(tmp_path / "bomb.yaml")


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    for text in ("a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}"):
        with pytest.raises(BadInput, match=r"some\.yaml, line \d\): a is given twice"):
            read_text(tmp_path, text)
    merged = "base: &b {blocks: 1, channels: 8}\nwide: {<<: *b, channels: 16}"
    assert read_text(tmp_path, merged)["wide"] == {"blocks": 1, "channels": 16}


def test_aliases_as_people_use_them_are_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: &a {blocks: 1, channels: 8}\nstages: [*a, *a, *a]\n")
    assert read_yaml(tmp_path / "recipe.yaml")["stages"] == [{"blocks": 1, "channels": 8}] * 3


def test_a_file_without_end_is_no_recipe():
    with pytest.raises(BadInput, match="more than"):
        read_yaml(Path("/dev/zero"))


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    for name in ("absent.yaml", "binary.yaml", "."):
        with pytest.raises(BadInput, match="cannot read"):
            read_yaml(tmp_path / name)


def test_yaml_text_is_read_back(tmp_path):
    recipe = get_recipe("seed002")
    (tmp_path / "r.yaml").write_text(write_yaml(recipe))
    assert from_plain(Recipe, read_yaml(tmp_path / "r.yaml")) == recipe


A_RECIPE = get_recipe("cifar10-94").to_dict()
A_SCORE = {"name": "cat", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
A_RECORD = {
    "resfit": "0",
    "recipe": "r",
    "config": {},
    "spec": {},
    "params": 1,
    "macs": 1,
    "budget": 1,
    "seed": 0,
    "epochs": 1,
    "device": "cpu",
    "precision": "fp32",
    "env": {},
    "data": {},
    "protocol": {},
    "layers": [{"name": "head", "kind": "linear", "shape": [10, 1, 1], "params": 1, "macs": 1, "activation_bytes": 4}],
    "seconds_to_result": 1.0,
    "images_per_second": 1.0,
    "test": {
        "accuracy": 0.5,
        "loss": 1.0,
        "ece": 0.1,
        "confusion": [[1]],
        "per_class": [A_SCORE],
        "reliability": [{"confidence": 0.5, "accuracy": 0.5, "count": 2}],
    },
    "curve": [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "lr": 0.1, "seconds": 1.0}],
}
FUZZED = {NetSpec: A_RECIPE["spec"], Recipe: A_RECIPE, RunRecord: A_RECORD}


@pytest.mark.parametrize("kind", FUZZED)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_data_is_built_or_refused_in_one_line(kind, data):
    plain = data.draw(PLAIN | mutations(FUZZED[kind]))
    try:
        value = from_plain(kind, plain)
    except BadInput as error:
        assert len(str(error).splitlines()) == 1, str(error)
    else:
        assert from_plain(kind, to_plain(value)) is not None


def test_what_the_fuzzing_starts_from_is_valid():
    for kind, valid in FUZZED.items():
        from_plain(kind, valid)


@pytest.mark.parametrize(("text", "value"), [("010", 8), ("1:30", 90), ("-007", -7)])
def test_numbers_that_yaml_reads_otherwise_are_refused(text: str, value: int) -> None:
    with pytest.raises(
        BadInput, match=rf"not valid YAML \(x, line 2\): {text} would be read as {value}, write a decimal"
    ):
        parse_yaml(f"a: 1\nb: {text}", "x")


def test_whole_numbers_are_read() -> None:
    assert parse_yaml("[0, -3, 1_000, 0x10, 10]", "x") == [0, -3, 1000, 16, 10]
