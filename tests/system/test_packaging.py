"""What is delivered: wheel and sdist hold all that is read at run time; shells complete what the parser knows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from helpers.places import ROOT
from resfit.cli import main
from resfit.version import __version__

PACKAGE = {
    str(path.relative_to(ROOT / "src"))
    for path in (ROOT / "src" / "resfit").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
KINDS = {".py", ".yaml", ".json", ".j2", ".css", ".cpp", ".typed"}  # of files that have to be delivered


@pytest.mark.slow
def test_wheel_and_sdist_work_in_fresh_environments(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(*words: str | Path, cwd: Path = tmp_path) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "results", "runs")
    shutil.copytree(ROOT, source, ignore=ignored)
    call(sys.executable, "-m", "hatchling", "build", "-d", tmp_path / "dist", cwd=source)
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert {Path(name).suffix for name in PACKAGE} >= KINDS
    assert not PACKAGE - packed
    with tarfile.open(sdist) as ball:
        tarred = {name.split("/", 1)[1] for name in ball.getnames() if "/" in name}
    assert not {f"src/{name}" for name in PACKAGE} - tarred
    assert {"README.md", "LICENSE", "pyproject.toml", "tests/system/test_packaging.py"} <= tarred

    for package in (wheel, sdist):
        venv = tmp_path / package.name.replace(".", "-")
        call(sys.executable, "-m", "venv", "--without-pip", venv)
        (packages,) = (venv / "lib").glob("python*/site-packages")
        (packages / "outer.pth").write_text(str(Path(torch.__file__).parents[1]))
        alone = ("--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation", "--quiet")
        call(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", *alone, package)
        code = "import resfit; print(resfit.__file__, len(resfit.recipe_names()), resfit.load, resfit.predict)"
        assert call(venv / "bin" / "python", "-c", code).startswith(str(packages))
        resfit = venv / "bin" / "resfit"
        assert call(resfit, "--version") == f"resfit {__version__}\n"
        assert "cifar10-94" in call(resfit, "recipes")
        assert "seed001-ablation" in call(resfit, "study", "--list")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_knows_commands_options_and_recipes(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("predict", "export", "safetensors-fp32", "cifar10-94", "data-dir"):
        assert word in script, word
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    main(["completion", "bash"])
    (tmp_path / "resfit.bash").write_text(capsys.readouterr().out)

    def offered(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        script = (
            f"source resfit.bash; COMP_WORDS=(resfit {line}); COMP_CWORD={len(words)}; COMP_LINE='resfit {line}'; "
            'f=$(complete -p resfit | sed "s/.*-F //; s/ .*//"); $f; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert offered("pre") == ["predict"]
    assert offered("train", "dig") == ["digits"]
    assert "--format" in offered("export", "--")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "invalid value for SHELL (csh)" in capsys.readouterr().err
