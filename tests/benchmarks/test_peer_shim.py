"""A script that asks for a GPU runs on the CPU, in bf16 where it has that, and its table is read."""

from __future__ import annotations

import sys

import pytest
import torch
from peer_shim import WARM_UP_IMAGES, warm_up_runs
from to_accuracy import finished_runs, peer

from resfit.device import usable_precision
from resfit.errors import RunFailed

# Makes the calls that such scripts make, and fails where one of them is not stood in for.
SCRIPT = """
import sys
import torch
from torch import nn

code = open(sys.argv[0]).read()

@torch.compile
def double(x):
    return 2 * x

@torch.compile(fullgraph=True)
def triple(x):
    return 3 * x

def row(*cells):
    print("|  " + "  |  ".join(str(cell).rjust(6) for cell in cells) + "  |")

def main(run, model):
    parts = {}
    for name in ("test", "train"):
        parts[name] = torch.load(f"cifar10/{name}.pt", map_location=torch.device("cuda"))
    images = (parts["train"]["images"].half() / 255).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    with open("counts", "a") as file:
        print(run, len(images), file=file)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    order = torch.randperm(len(images), device=torch.device(0))
    noise = torch.zeros(2, dtype=torch.half, device="cuda").to("cuda").cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    out = double(triple(model(images[order[:8]])))
    assert out.dtype is torch.HALF is noise.dtype is torch.half is out.bfloat16().dtype and out.device.type == "cpu"
    out.float().sum().backward()
    optimizer.step()
    assert model._orig_mod[0] is model[0]
    assert isinstance(out.device, torch.device)
    end.record()
    torch.cuda.synchronize()
    seconds = 1e-3 * start.elapsed_time(end)
    assert 0 < seconds < 60
    row(run, 0, "", "")
    row("", "eval", len(images) / 1e6, f"{seconds:.4f}")

model = nn.Sequential(nn.Conv2d(3, 2, 3)).half().cuda().to(memory_format=torch.channels_last)
model.compile(mode="max-autotune")
model = torch.compile(model, mode="max-autotune")
row("run", "epoch", "tta_val_acc", "time_seconds")
main("warmup", model)
for run in range(100000):
    main(run, model)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for name, count in (("train", WARM_UP_IMAGES + 500), ("test", 10)):
        images = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
        content = {"images": images, "labels": torch.zeros(count, dtype=torch.int64), "classes": ["a"]}
        torch.save(content, tmp_path / "cifar10" / f"{name}.pt")
    half = "bfloat16" if usable_precision("auto", torch.device("cpu")) == "bf16" else "float32"
    (tmp_path / "script.py").write_text(SCRIPT.replace("HALF", half))
    return tmp_path


def test_a_script_for_a_gpu_runs_on_the_cpu_and_is_stopped_after_its_runs(folder):
    runs = peer(folder / "script.py", folder, 2, shim=True, limit=200)
    assert len(runs) == 2
    assert [run["accuracy"] for run in runs] == [(WARM_UP_IMAGES + 500) / 1e6] * 2
    assert all(0 < run["seconds"] < 60 for run in runs)
    counts = (folder / "counts").read_text().splitlines()
    assert counts[:2] == [f"warmup {WARM_UP_IMAGES}", f"0 {WARM_UP_IMAGES + 500}"]


def test_a_script_that_fails_is_told_with_its_last_line(folder):
    (folder / "broken.py").write_text("raise SystemExit('out of luck')")
    with pytest.raises(RunFailed, match=r"broken\.py, exit status 1\): it said last: out of luck"):
        peer(folder / "broken.py", folder, 1, shim=False, limit=60)


@pytest.mark.parametrize(("first", "counts"), [("", False), ("main('warmup')\n", True)])
def test_a_script_that_takes_too_long_is_stopped_and_its_cold_run_does_not_count(folder, first, counts):
    table = "| run | epoch | tta_val_acc | time_seconds |\\n| 0 | eval | 0.5 | 9.0 |\\n| 1 | eval | 0.5 | 1.0 |"
    code = f"import time\ndef main(run):\n    pass\n{first}print('{table}', flush=True)\ntime.sleep(600)"
    (folder / "slow.py").write_text(code)
    seconds = [run["seconds"] for run in peer(folder / "slow.py", folder, 5, shim=False, limit=3)]
    assert seconds == ([9.0, 1.0] if counts else [1.0])


def test_only_calls_of_a_warm_up_run_count_as_one():
    assert warm_up_runs("if True:\n    main('warmup', model)\n") == 1
    assert warm_up_runs("    #main('warmup')\nif run == 'warmup':\n    pass\n") == 0


def test_a_table_is_read_up_to_its_runs_ends_without_the_warm_up():
    table = """
    ------
    |  run     |  epoch  |  val_acc  |  tta_val_acc  |  total_time_seconds  |
    |  warmup  |      0  |   0.1000  |               |             11.0000  |
    |          |   eval  |   0.1000  |       0.1100  |             12.0000  |
    something else | that has bars
    |       0  |      0  |   0.6000  |               |             20.0000  |
    |          |   eval  |   0.9300  |       0.9400  |             30.5000  |
    |       1  |      0  |   0.6000  |               |             20.0000  |
    """
    assert list(finished_runs(table.splitlines())) == [{"seconds": 30.5, "accuracy": 0.94}]


def test_the_tests_of_the_shim_leave_this_process_alone():
    assert torch.half is torch.float16
    assert sys.modules["peer_shim"].CPUDevice is not torch.device
