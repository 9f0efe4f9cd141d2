"""Measure time to an accuracy: runs of a recipe and of peers, alternating, on one machine.

    python benchmarks/to_accuracy.py DATA_DIR --recipe cifar10-94 --target 0.94 --runs 5 [--airbench CHECKOUT]

A target is reached if the mean over the runs reaches it, with test-time augmentation, whose time is included. resfit's
time runs from the data in memory to the test score; a peer's is what its script prints. Peers come from your own
checkout and are not modified: KellerJordan/cifar10-airbench, and other scripts that print the same table. On a CPU they
run through peer_shim.py, on a GPU as they are. A turn is one run on a CPU, and all runs on a GPU, where peers compile
for minutes once per process, and warm up with a run that does not count, as resfit does there.

Recipe fields are passed to `resfit train` unchanged: --train.compile true.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from signal import SIGTERM
from threading import Timer

from common import Numbers, Recorder, Round, in_process, parser, run_main
from peer_shim import warm_up_runs

from resfit.cost import cost
from resfit.device import pick_device
from resfit.errors import BadInput, RunFailed
from resfit.recipe import DataConfig, get_recipe
from resfit.record import is_finished, read_record

SHIM = Path(__file__).parent / "peer_shim.py"
AIRBENCH = {0.94: "airbench94_muon.py", 0.95: "legacy/airbench95.py", 0.96: "airbench96_faster.py"}
_KEPT_LINES = 40  # last lines of a command's output, shown if it fails
_ENDED = (0, 128 + SIGTERM, -SIGTERM)  # exit statuses of a command that finished, or was stopped at the time limit


def ours(
    recipe: str, seeds: range, out: Path, *, data_dir: Path, device: str, settings: Sequence[str], limit: float
) -> list[Numbers]:
    """Run `resfit train` in one process, one run per seed; return the runs that finish within `limit` seconds."""
    folders = {seed: out / get_recipe(recipe).name / str(seed) for seed in seeds}
    if taken := [str(folder) for folder in folders.values() if folder.exists()]:
        raise BadInput(f"runs of another measurement exist already ({taken[0]}): give another folder (--keep)")
    where = ["--data-dir", str(data_dir), "--offline", "--device", device, "--out", str(out)]
    which = ["--seed", str(seeds.start), "--runs", str(len(seeds))]
    command = [sys.executable, "-m", "resfit", "train", recipe, *which, *where, *settings]
    with _running(command, limit) as process:
        assert process.stdout is not None
        last = deque(process.stdout, maxlen=_KEPT_LINES)
        process.wait()
    records = {seed: read_record(folder) for seed, folder in folders.items() if is_finished(folder)}
    if process.returncode not in _ENDED:
        print("".join(last), file=sys.stderr, flush=True)
    if not records:
        said = last.pop().strip() if last else "nothing"
        raise RunFailed(f"not measured (resfit train {recipe}, exit status {process.returncode}): it said last: {said}")
    return [
        {"seconds": record.seconds_to_result, "accuracy": record.accuracy, "seed": seed}
        for seed, record in records.items()
    ]


def peer(script: Path, folder: Path, count: int, shim: bool, limit: float) -> list[Numbers]:
    """Return the first `count` runs of a peer's script, run in a folder with its data for at most `limit` seconds.

    On a GPU a script's first run compiles, or lets cuDNN try its algorithms. If the script has no warm-up run of its
    own, its first run is not counted, like resfit's.
    """
    command = [sys.executable, *([str(SHIM)] if shim else []), str(script.resolve())]
    cold = 0 if shim or warm_up_runs(script.read_text()) else 1
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    with _running(command, limit, folder) as process:
        assert process.stdout is not None
        runs = list(islice(finished_runs(_remembered(process.stdout, last)), cold, cold + count))
    if not runs:
        print("\n".join(last), file=sys.stderr, flush=True)
        said = last.pop() if last else "nothing"
        raise RunFailed(f"no run was finished ({script}, exit status {process.returncode}): it said last: {said}")
    return runs


@contextmanager
def _running(command: Sequence[str], limit: float, folder: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a process with readable output; terminate it at the end of the block, or after `limit` seconds."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = Timer(limit, process.terminate)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.terminate()
        process.wait()


def _remembered(lines: Iterable[str], last: deque[str]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            last.append(line.strip())
        yield line


def finished_runs(lines: Iterable[str]) -> Iterator[Numbers]:
    """Yield time and accuracy with TTA of each run in a peer's table except warm-ups; a run ends with an "eval" row."""
    columns: list[str] = []
    run = ""
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "tta_val_acc" in cells:
            columns = cells
        elif columns and len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            run = row["run"] or run  # given only in the run's first row
            if row["epoch"] == "eval" and run != "warmup":
                seconds = row.get("time_seconds") or row["total_time_seconds"]
                yield {"seconds": float(seconds), "accuracy": float(row["tta_val_acc"])}


def peers_runs(
    peers: Mapping[str, Path], folder: Path, count: int, shim: bool, limit: float
) -> dict[str, list[Numbers]]:
    """Return the first runs of each peer; a failure is reported in one line, and the others are still measured."""
    runs: dict[str, list[Numbers]] = {}
    for name, script in peers.items() if count > 0 else ():
        try:
            runs[name] = peer(script, folder, count, shim, limit)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
    return runs


def prepare(data_dir: str, folder: str, images: int | None) -> Numbers:
    """Write CIFAR-10 where peers look for it: cifar10/train.pt and test.pt, uint8 [N, H, W, C].

    `images` limits the training images, and the test images to a tenth of that.
    """
    import torch

    from resfit.data import load_dataset

    data = load_dataset(DataConfig(name="cifar10", val=0), size=32, data_dir=Path(data_dir), offline=True)
    target = Path(folder) / "cifar10"
    target.mkdir()
    for name, part, count in (("train", data.train, images), ("test", data.test, images and images // 10)):
        pixels = part.images[:count].permute(0, 2, 3, 1).contiguous()
        content = {"images": pixels, "labels": part.labels[:count].clone(), "classes": list(data.classes)}
        torch.save(content, target / f"{name}.pt")
    return {}


def scripts(airbench: Path | None, target: float, others: Sequence[Path]) -> dict[str, Path]:
    """Return the peers' scripts by name; raises BadInput if one does not exist."""
    found = list(others)
    if airbench:
        if target not in AIRBENCH:
            raise BadInput(f"airbench has no script for {target} (--target): give {', '.join(map(str, AIRBENCH))}")
        found.append(airbench / AIRBENCH[target])
    for script in found:
        if not script.is_file():
            raise BadInput(f"no such script ({script}): give a checkout of the peer")
    return {script.stem: script for script in found}


def side_by_side(ours: Sequence[Numbers], peers: Mapping[str, Sequence[Numbers]]) -> Iterator[Round]:
    """Yield a turn's runs as rounds, the first with the first and so on, with the ratios of their times."""
    for n in range(max(len(ours), *map(len, peers.values()), 0)):
        mine = {"resfit": ours[n]} if n < len(ours) else {}
        others = {name: runs[n] for name, runs in peers.items() if n < len(runs)}
        ratios = {f"seconds to {name}": ours[n]["seconds"] / run["seconds"] for name, run in others.items() if mine}
        yield {**mine, **others, "ratios": ratios}


def main() -> None:
    """Run in turn, print and record."""
    options_parser = parser(__doc__)
    options_parser.add_argument("data_dir", type=Path, help="the folder that holds CIFAR-10")
    options_parser.add_argument("--recipe", default="cifar10-94")
    options_parser.add_argument("--target", type=float, default=0.94, help="test accuracy, a fraction")
    options_parser.add_argument("--runs", type=int, default=5)
    options_parser.add_argument("--seed", type=int, default=0, help="the first run's (0)")
    options_parser.add_argument("--peer-runs", type=int, help="runs of each peer, the first so many turns (as many)")
    options_parser.add_argument("--turn", type=int, help="runs in a turn (1; on a GPU all)")
    options_parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    options_parser.add_argument("--airbench", type=Path, help="a checkout of KellerJordan/cifar10-airbench")
    options_parser.add_argument("--peer", type=Path, nargs="+", default=[], help="scripts of other peers")
    options_parser.add_argument("--limit", type=float, default=86400.0, help="seconds of a turn, for each side")
    options_parser.add_argument("--images", type=int, help="training images of the peers, to try whether they run")
    options_parser.add_argument("--keep", type=Path, help="folder for resfit's runs, which are thrown away otherwise")
    options, overrides = options_parser.parse_known_args()
    device, recipe = pick_device(options.device).type, get_recipe(options.recipe)
    peers = scripts(options.airbench, options.target, options.peer)
    settings = {
        "target": options.target,
        "params": cost(recipe.spec).params,
        "epochs": options.epochs or recipe.train.epochs,
        "overrides": overrides,
        "peers": {name: hashlib.sha256(script.read_bytes()).hexdigest() for name, script in peers.items()},
        "peer_images": options.images,
    }
    recorder = Recorder(benchmark="to_accuracy", subject=recipe.name, settings=settings, device=device, out=options.out)
    with tempfile.TemporaryDirectory() as place:
        folder, keep = Path(place), options.keep or Path(place) / "runs"
        if peers:
            in_process(prepare, data_dir=options.data_dir, folder=folder, images=options.images)
        shared = {"data_dir": options.data_dir, "device": device, "limit": options.limit}
        fields = [*overrides, *(["--train.epochs", str(options.epochs)] if options.epochs else [])]
        warm_up = 1 if device == "cuda" else 0  # a process's first run on a GPU includes CUDA initialization
        turn = options.turn or (options.runs if device == "cuda" else 1)
        for place in range(0, options.runs, turn):
            count, first = min(turn, options.runs - place), options.seed + place + warm_up * (place // turn)
            seeds = range(first, first + warm_up + count)
            finished = ours(options.recipe, seeds, keep, **shared, settings=fields)
            mine = [run for run in finished if run["seed"] >= first + warm_up]
            if warm_up:
                shutil.rmtree(keep / recipe.name / str(first), ignore_errors=True)
            recorder.put(place, list(side_by_side(mine, {})))  # saved first: a slow peer cannot lose it
            wanted = count if options.peer_runs is None else min(count, options.peer_runs - place)
            theirs = peers_runs(peers, folder, wanted, shim=device == "cpu", limit=options.limit)
            if theirs:
                recorder.put(place, list(side_by_side(mine, theirs)))
    print(recorder.path)


if __name__ == "__main__":
    run_main(main)
