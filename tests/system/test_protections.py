"""The tests of docs/reliability.md fail when what they protect is taken away.

Each protection is a line of the source with what stands there without it. The test named beside it runs on a copy of
the source that was changed so, and has to fail; on an unchanged copy all of them pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.places import ROOT


@dataclass(frozen=True)
class Protection:
    """A line in a file of the package, what it becomes without the protection, and the tests that have to notice."""

    file: str
    line: str
    without: str
    tests: str


PROTECTIONS = {
    "random numbers are part of a state": Protection(
        "train.py",
        '"generator": self.generator.get_state(),',
        '"generator": torch.Generator().get_state(),',
        "test_train.py::test_resume_after_any_step_is_exact",
    ),
    "the optimizer's buffers are part of a state": Protection(
        "train.py",
        'self.optimizers.load_state_dict(state["optimizers"])',
        "pass",
        "test_train.py::test_resume_after_any_step_is_exact",
    ),
    "metrics past the state are dropped": Protection(
        "runner.py",
        'write_atomic(self.folder / "metrics.jsonl", "".join(lines))',
        '(self.folder / "metrics.jsonl").touch()',
        "test_resume.py::test_metrics_written_after_the_state_are_not_repeated",
    ),
    "a signal waits for the step's end": Protection(
        "interrupt.py", "self.asked = number", "raise SystemExit(number)", "test_interrupt.py"
    ),
    "the second signal ends the process": Protection(
        "interrupt.py", "signal.signal(each, signal.SIG_DFL)", "pass", "test_interrupt.py"
    ),
    "a file is written beside the old one": Protection(
        "files.py",
        'partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part")',
        "partial = path",
        "test_checkpoint.py",
    ),
    "the state before the last is kept": Protection(
        "checkpoint.py",
        "keep=path.with_name(PREVIOUS)",
        "keep=None",
        "test_resume.py::test_a_damaged_state_is_named_and_the_one_before_it_taken",
    ),
    "a state's checksum is looked at": Protection(
        "checkpoint.py", "if hashlib.sha256(content).digest() != digest:", "if False:", "test_checkpoint.py"
    ),
    "no code in a state is run": Protection(
        "checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "test_checkpoint.py::test_code_in_a_state_never_runs",
    ),
    "a model's checksum is looked at": Protection(
        "modelheader.py", "if digest is not None and digest != _digest(header, data):", "if False:", "test_modelfile.py"
    ),
    "a record's checksum is looked at": Protection(
        "record.py",
        'if isinstance(plain, dict) and plain.pop("digest", None) not in (None, _digest(plain)):',
        'plain.pop("digest", None)\n    if False:',
        "test_resume.py::test_a_damaged_record_is_named",
    ),
    "a run folder is held": Protection(
        "files.py",
        "    while not _lock(folder, held):\n        os.close(held)\n        held = _opened(folder)\n",
        "",
        "test_resume.py::test_one_process_at_a_time_works_in_a_run_folder",
    ),
    "a changed recipe is refused": Protection(
        "resume.py",
        "if changed and not override:",
        "if False:",
        "test_resume.py::test_a_changed_recipe_is_shown_and_refused_and_with_override_taken",
    ),
    "weights that are not finite stop a run": Protection(
        "train.py",
        "if not finite.all():",
        "if False:",
        "test_resume.py::test_weights_that_are_not_finite_are_never_saved",
    ),
    "a loss that is not finite stops a run": Protection(
        "train.py",
        "if self.under_way is not None and not torch.isfinite(self.under_way.loss_sum):",
        "if False:",
        "test_resume.py::test_a_run_that_diverges_goes_back_and_on_more_slowly",
    ),
    "out of memory halves the batch": Protection(
        "train.py", "except torch.OutOfMemoryError:", "except ZeroDivisionError:", "test_train.py -k out_of_memory"
    ),
    "a data file's MD5 is looked at": Protection(
        "data/download.py",
        "if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:",
        "if False:",
        "data/test_data_cifar.py",
    ),
    "a cache's checksum is looked at": Protection(
        "data/cache.py", "checksum == hashlib.blake2b(array).digest()", "True", "data/test_data_cache.py"
    ),
    "an image bomb is an error": Protection(
        "data/decode.py",
        "if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:",
        "if False:",
        "data/test_data_decode.py",
    ),
    "a pickle builds arrays alone": Protection(
        "data/cifar.py",
        'raise pickle.UnpicklingError(f"it asks for {module}.{name}")',
        "return super().find_class(module, name)",
        "data/test_data_cifar.py::test_a_hostile_pickle_does_not_run",
    ),
    "unsafe members of archives are refused": Protection(
        "data/download.py",
        '_refuse_unsafe(tar, archive)\n                tar.extractall(partial, filter="data")',
        'tar.extractall(partial, filter="fully_trusted")',
        "data/test_data_download.py",
    ),
    "YAML makes plain values alone": Protection(
        "fields.py", "class _Loader(yaml.SafeLoader):", "class _Loader(yaml.UnsafeLoader):", "test_fields.py"
    ),
    "aliases are counted": Protection(
        "fields.py",
        "if known[id(data)] > _MOST_VALUES:",
        "if False:",
        "test_fields.py::test_aliases_that_stand_for_too_much_are_refused",
    ),
    "a page escapes names": Protection(
        "report/page.py", "autoescape=True", "autoescape=False", "report/test_report.py -k untrusted"
    ),
    "a search sees no test images": Protection(
        "run.py",
        "replace(data, test=data.test.take(torch.arange(0)))",
        "data",
        "system/test_honest.py::test_tuning_sees_no_test_image",
    ),
    "who watches takes no random numbers": Protection(
        "observer.py",
        "with torch.random.fork_rng(self.devices):",
        "if True:",
        "system/test_honest.py::test_watching_a_run_does_not_change_it",
    ),
    "memory is asked for before it is taken": Protection(
        "machine.py", "if free is not None and needed > free:", "if False:", "test_machine.py"
    ),
    "a write that fails is told in a line": Protection(
        "files.py",
        "    except OSError as error:\n        raise _cannot_write(path, error) from None\n    return path",
        "    except ZeroDivisionError:\n        raise\n    return path",
        "test_checkpoint.py",
    ),
}


def outcome(folder: Path, protection: Protection | None, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest's end on a copy of the source without the protection, or on an unchanged one."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    if protection:
        file = folder / "src" / "resfit" / protection.file
        text = file.read_text(encoding="utf-8")
        assert text.count(protection.line) == 1, f"{protection.file} has no such line, or several"
        file.write_text(text.replace(protection.line, protection.without), encoding="utf-8")
    words = [
        word if word.startswith("-") or "test_" not in word else f"tests/{word}" for word in " ".join(tests).split()
    ]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *words]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("protection", PROTECTIONS.values(), ids=PROTECTIONS)
def test_its_line_and_its_test_are_there(protection: Protection) -> None:
    text = (ROOT / "src" / "resfit" / protection.file).read_text(encoding="utf-8")
    assert text.count(protection.line) == 1
    for word in (word for word in protection.tests.split() if "test_" in word and not word.startswith("-")):
        file, _, name = word.partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("protection", PROTECTIONS.values(), ids=PROTECTIONS)
def test_its_loss_is_noticed(protection: Protection, tmp_path: Path) -> None:
    done = outcome(tmp_path, protection, protection.tests)
    failed = done.returncode == 1 and " failed" in done.stdout
    ended = done.returncode < 0 or "interrupted (SIG" in done.stdout  # a signal that the run should have heard
    assert failed or ended, f"status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_a_loss_there_is_nothing_to_notice(tmp_path: Path) -> None:
    files = sorted({protection.tests.split("::")[0].split(" ")[0] for protection in PROTECTIONS.values()})
    done = outcome(tmp_path, None, *files)
    assert done.returncode == 0, done.stdout[-3000:]
