"""resfit design: a table, a list, a page, a recipe; nothing is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from resfit.cli import main
from resfit.cost import cost
from resfit.recipe import get_recipe
from resfit.scale import fitted
from resfit.spec import NetSpec
from resfit.target import find_target


def run(capsys, *words: str) -> str:
    assert main(["design", *words]) == 0
    return capsys.readouterr().out


def complaint(capsys, *words: str) -> str:
    assert main(["design", *words]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_the_list_names_networks_within_two_percent_of_the_budget(capsys):
    found = json.loads(run(capsys, "--budget", "5M", "--family", "wrn", "--json"))
    assert len(found) == 5
    for each in found:
        assert each["family"] == "wrn"
        price = cost(NetSpec.from_dict(each["spec"]))
        assert 4_900_000 <= each["params"] == price.params <= 5_000_000
        assert (each["macs"], each["activation_bytes"]) == (price.macs, price.activation_bytes)


def test_the_table_has_a_row_a_family_and_says_how_it_ranks(capsys):
    out = run(capsys, "--budget", "500k")
    for family in ("shake", "wrn", "pyramid", "resnext"):
        assert re.search(rf"^ +\d+ +{family} ", out, re.M)
    assert "by departure" in out


def test_what_is_saved_can_be_shown_and_trained(capsys, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    words = ("--budget", "100k", "--family", "wrn", "--size", "8", "--channels", "1", "--top", "1")
    first = json.loads(run(capsys, *words, "--json"))[0]
    out = run(capsys, *words, "--save", str(path), "--recipe", "digits")
    assert out.splitlines()[-1] == str(path)
    recipe, digits = get_recipe(path), get_recipe("digits")
    assert recipe.spec.to_dict() == first["spec"]
    assert (recipe.name, recipe.budget) == ("mine", 100_000)
    assert (recipe.data, recipe.optim, recipe.train) == (digits.data, digits.optim, digits.train)
    assert find_target(str(path)).spec == recipe.spec


LENDERS = ["cifar10-94", "cifar10-best-cpu", "cifar100-best", "digits"]


@pytest.mark.parametrize("name", LENDERS)
def test_any_recipe_lends_its_data_and_training(capsys, tmp_path: Path, name):
    """Its images and classes with them, but nothing of the parts of a network that it has no more."""
    run(capsys, "--family", "wrn", "--save", f"{tmp_path}/found.yaml", "--recipe", name)
    found, lender = get_recipe(f"{tmp_path}/found.yaml"), get_recipe(name)
    assert (found.spec.input, found.spec.num_classes) == (lender.spec.input, lender.spec.num_classes)
    assert (found.data, found.optim, found.augment) == (lender.data, lender.optim, lender.augment)
    assert found.train.freeze_stem_after is None


@pytest.mark.parametrize("name", LENDERS)
def test_a_recipe_s_own_network_comes_first_at_the_size_that_is_wanted(capsys, tmp_path: Path, name):
    path, page = tmp_path / "mine.yaml", tmp_path / "page.html"
    words = ("--budget", "300k", "--recipe", name)
    first, second, *_ = json.loads(run(capsys, *words, "--json", "--save", str(path), "--out", str(page)))
    assert (first["family"], second["family"]) == ("own", "shake")
    recipe, mine = get_recipe(name), get_recipe(path)
    assert mine.spec == fitted(recipe, 300_000).spec == NetSpec.from_dict(first["spec"])
    assert (mine.train, mine.optim, mine.budget) == (recipe.train, recipe.optim, 300_000)
    assert "all widths scaled by one factor" in page.read_text(encoding="utf-8")


def test_other_images_have_a_whitening_stem_of_their_own(capsys):
    own, *_ = json.loads(run(capsys, "--budget", "300k", "--recipe", "cifar10-94", "--channels", "1", "--json"))
    assert own["spec"]["stem"]["channels"] == 2 * 1 * 2 * 2
    small, *_ = json.loads(run(capsys, "--budget", "300k", "--recipe", "seed001d", "--size", "4", "--json"))
    assert small["spec"]["input"]["size"] == 4


def test_the_limit_on_macs_holds_for_a_recipe_s_own_network(capsys):
    words = ("--budget", "300k", "--recipe", "cifar10-94", "--json")
    own, *_ = json.loads(run(capsys, *words))
    limit = own["macs"] // 2
    faster, *_ = json.loads(run(capsys, *words, "--macs", str(limit)))
    assert faster["family"] == "own"
    assert 0.9 * limit < faster["macs"] <= limit
    assert faster["params"] < own["params"]


def test_a_recipe_s_own_network_may_be_the_only_one(capsys):
    found = json.loads(run(capsys, "--budget", "250", "--recipe", "digits", "--json"))
    assert [each["family"] for each in found] == ["own"]
    assert found[0]["params"] <= 250
    assert "no network of any family" in complaint(capsys, "--budget", "100", "--recipe", "digits")


def test_images_that_are_too_small_for_a_recipe_are_refused(capsys):
    assert "nothing is left of the image" in complaint(capsys, "--recipe", "cifar10-94", "--size", "4")


def test_nothing_is_written_where_a_name_is_wrong(capsys, tmp_path: Path):
    page = ("--family", "wrn", "--out", f"{tmp_path}/found.html")
    assert "unknown recipe" in complaint(capsys, *page, "--save", f"{tmp_path}/found.yaml", "--recipe", "nosuch")
    assert "different names" in complaint(capsys, *page, "--save", f"{tmp_path}/../{tmp_path.name}/found.html")
    assert "--recipe folder" in complaint(capsys, *page, "--save", f"{tmp_path}/found.yaml", "--classes", "7")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--save", "--out"])
def test_no_file_is_overwritten(capsys, tmp_path: Path, option):
    path = tmp_path / "there"
    path.write_text("mine")
    assert f"({path})" in complaint(capsys, option, str(path))
    assert path.read_text() == "mine"


def test_the_page_stands_alone_and_shows_every_network(capsys, tmp_path: Path):
    path = tmp_path / "page.html"
    run(capsys, "--budget", "500k", "--top", "2", "--out", str(path))
    found = json.loads(run(capsys, "--budget", "500k", "--top", "2", "--json"))
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|<script|url\(", page)
    for each in found:
        assert f"{each['params']:,}" in page
    assert page.count("<circle") == 2 * len(found)
    assert "97.5 % on CIFAR-10: Shake-Shake 26 2x32d" in page


def test_speed_is_measured_where_it_is_asked_for(capsys):
    words = ("--budget", "10k", "--family", "wrn", "--size", "8", "--channels", "1", "--top", "1", "--json")
    (plain,) = json.loads(run(capsys, *words))
    (timed,) = json.loads(run(capsys, *words, "--measure"))
    assert timed["latency_ms"] > 0 and timed["images_per_second"] > 0
    assert {name: timed[name] for name in plain} == plain
    assert "--latency" in complaint(capsys, *words, "--latency", "1e-9")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--family", "vgg"), "unknown family (vgg)"),
        (("--budget", "much"), "--budget"),
        (("--macs", "few"), "--macs"),
        (("--top", "0"), "--top"),
        (("--latency", "-1"), "--latency"),
        (("--recipe", "nosuch"), "unknown recipe (nosuch)"),
    ],
)
def test_bad_words_are_refused_by_name(capsys, words, problem):
    assert problem in complaint(capsys, *words)
