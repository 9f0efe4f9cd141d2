"""What the documents say to type works: every block is run, every command is one that the program takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.documents import Block, apply, blocks, commands, run, untagged
from helpers.places import ROOT
from resfit.cli import _take_overrides, make_parser
from resfit.recipe import get_recipe, recipe_names
from resfit.spec import NetSpec

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", *PAGES]
TUTORIAL, EXTENDING, PYTHON = "docs/tutorial.md", "docs/extending.md", "docs/python.md"
GATE = "pip install '.[test]' && pytest"  # run by .ci/run, which takes it from the README

# A document's longest runs are made shorter, with the same commands.
SHORTER = {
    "pip install . && ": "",
    "cifar10-94 --runs 3": "digits --runs 2 --epochs 1",
    "cifar10-94": "digits",
    "--data-dir my-images": "--data-dir my-images --epochs 1",
}


def shorter(block: Block) -> Block:
    text = block.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return replace(block, text=text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_one_that_the_program_takes(document: str) -> None:
    for command in commands(document):
        words, overrides = _take_overrides(shlex.split(re.sub(r"\s*(\.\.\.|…)", "", command))[1:])
        if "--help" in words or len(words) < 2:  # the command is named, not given
            assert words[0] in make_parser().format_help(), command
            continue
        options = make_parser().parse_args(words)
        assert options.takes_fields or not overrides, command
        if getattr(options, "recipe", None) in recipe_names():
            get_recipe(options.recipe, overrides)


def test_every_block_is_of_a_kind_that_is_run() -> None:
    kinds = {block.language for document in DOCUMENTS for block in blocks(document)}
    assert kinds <= {"sh", "python", "yaml", "diff", "text"}
    assert not [fence for document in DOCUMENTS for fence in untagged(document)]


def test_what_the_readme_shows_of_design_is_what_it_prints(tmp_path: Path) -> None:
    (shown,) = (block.text for block in blocks("README.md") if block.language == "text")
    command, *rows = shown.splitlines()
    printed = run(Block("sh", "", command.removeprefix("$ ")), tmp_path)
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    wanted = [" ".join(row.split()) for row in rows if row[:3].strip().isdecimal()]
    assert len(wanted) == 3
    assert lines.issuperset(wanted)


def test_the_readmes_network_has_a_price() -> None:
    import yaml

    specs = [block for block in blocks("README.md") if block.language == "yaml"]
    assert specs
    for block in specs:
        NetSpec.from_dict(yaml.safe_load(block.text))


def test_the_tutorial_up_to_its_first_training(tmp_path: Path) -> None:
    made, shown = blocks(TUTORIAL)[:2]
    run(made, tmp_path)
    assert len(list((tmp_path / "my-images").glob("*/*.png"))) == 1797
    assert "over the budget of 500,000" in run(shown, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_from_start_to_end(tmp_path: Path) -> None:
    printed = [run(block, tmp_path) for block in blocks(TUTORIAL)]
    assert "digit-9" in printed[-2]
    assert (tmp_path / "runs" / "folder" / "0" / "report.html").exists()
    assert (tmp_path / "runs" / "folder-fit-100k" / "0" / "model.int8.onnx").exists()
    assert "Robustness" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("n", range(len(blocks("README.md"))))
def test_a_block_of_the_readme(n: int, tmp_path: Path) -> None:
    block = blocks("README.md")[n]
    if GATE in block.text:
        taken = re.search(r"command=\$\((grep .*)\)", (ROOT / ".ci" / "run").read_text())
        assert taken and subprocess.check_output(taken[1], shell=True, cwd=ROOT, text=True) == block.text
        return
    if block.language == "text":
        return  # what a command prints: there is a test of its own
    if block.language == "yaml":
        (tmp_path / "network.yaml").write_text(block.text)
        block = Block("sh", "", "resfit show network.yaml")
    run(blocks(TUTORIAL)[0], tmp_path)  # makes my-images
    run(shorter(block), tmp_path)


def test_the_program_of_the_page_on_python(tmp_path: Path) -> None:
    """Its blocks in turn, in one process."""
    whole = "\n".join(block.text for block in blocks(PYTHON))
    assert "ClassProbability(name=" in run(Block("python", "", whole), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("document", [page for page in PAGES if page not in (TUTORIAL, EXTENDING, PYTHON)])
def test_the_blocks_of_a_page(document: str, tmp_path: Path) -> None:
    for block in blocks(document):
        if block.title:
            apply(block, tmp_path)
        else:
            run(shorter(block), tmp_path)


def extended(folder: Path) -> Path:
    """A copy of the source with every change that the page on extending shows."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(EXTENDING):
        if block.title:
            apply(block, folder)
    return folder / "src"


def test_the_examples_of_extending_fit_the_source(tmp_path: Path) -> None:
    source = extended(tmp_path)
    done = subprocess.run([sys.executable, "-m", "compileall", "-q", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "norm-both" in run(Block("sh", "", "resfit show stripes.yaml --json"), tmp_path, source)


@pytest.mark.slow
def test_the_examples_of_extending_run(tmp_path: Path) -> None:
    source = extended(tmp_path)
    for block in blocks(EXTENDING):
        if not block.title:
            run(block, tmp_path, source)
    assert (tmp_path / "runs" / "stripes" / "0" / "report.html").exists()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fields = (tmp_path / "site" / "reference" / "fields" / "index.html").read_text()
    assert "label_smoothing" in fields
    assert "spec.stages[]" in fields
    pages = list((tmp_path / "site").rglob("*.html"))
    foreign = re.compile(r'<(?:link|script|img)[^>]*(?:src|href)="(https?:[^"]*)"')
    assert not [url for page in pages for url in foreign.findall(page.read_text())]  # nothing comes from elsewhere
