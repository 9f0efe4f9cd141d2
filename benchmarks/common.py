"""Helpers of the benchmarks: one process per measurement, alternating rounds, medians, and records.

A measurement is a function of a benchmark's module that returns named numbers. It runs in its own process, as memory
settings, threads and peak memory are per process. The machine's speed drifts, so measurements alternate, A, B, A, B,
and ratios are computed within a round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resfit.device import pick_device
from resfit.environment import environment, without_places
from resfit.errors import ResfitError, RunFailed
from resfit.files import write_atomic

RECORDS = Path(__file__).parent / "records"

Numbers = dict[str, float]
Round = dict[str, Numbers]  # the numbers of each measurement, and "ratios" between measurements
Record = dict[str, Any]


def in_process(function: Callable[..., Mapping[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Call `function` of a benchmark's module in its own process; return its result, with peak memory in bytes.

    Raises RunFailed with the last line of stderr if the process fails; all of stderr is printed.
    """
    where, name = Path(sys.modules[function.__module__].__file__ or ""), function.__name__
    command = [sys.executable, __file__, str(where), name, json.dumps(arguments, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunFailed(f"{reason} ({where.name}, {name})")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _answer(where: str, name: str, arguments: str) -> None:
    """Run in the child process of `in_process`: call the function and print its result."""
    sys.path.insert(0, str(Path(where).parent))
    found = getattr(importlib.import_module(Path(where).stem), name)(**json.loads(arguments))
    print(json.dumps({**found, **_peak_memory()}))


def _peak_memory() -> Numbers:
    """Return this process's peak memory in bytes: on the host, and allocated by torch on the GPU if it used one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_host_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["peak_device_bytes"] = float(torch.cuda.max_memory_allocated())
    return peak


def machine(env: Mapping[str, Any]) -> str:
    """Return a short name of the GPU, or the CPU's fastest feature, for file names: "h200", "amx", "avx2"."""
    if env["gpu"]:
        return str(env["gpu"]).removeprefix("NVIDIA ").lower().replace(" ", "-")
    for feature, name in (("amx_bf16", "amx"), ("avx512_bf16", "avx512-bf16"), ("avx512f", "avx512"), ("avx2", "avx2")):
        if feature in env["cpu_features"]:
            return name
    return "cpu"


def here(device: str) -> dict[str, Any]:
    """Return this machine's facts for a record; absolute paths in the command are reduced to their last part."""
    env = environment(pick_device(device))
    return {**env, "command": without_places(env["command"])}


def medians(rounds: Sequence[Round]) -> Round:
    """Return the median of every number over the rounds that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for measurements in rounds:
        for what, numbers in measurements.items():
            values = found.setdefault(what, {})
            for name, value in numbers.items():
                values.setdefault(name, []).append(value)
    return {what: {name: statistics.median(v) for name, v in names.items()} for what, names in found.items()}


@dataclass(kw_only=True)
class Recorder:
    """A benchmark's record; the file is rewritten after each round, so that little is lost if the benchmark is stopped.

    `subject` is what is measured, `settings` how; both are plain values. The file gets a new name in the folder `out`:
    no earlier record is ever overwritten.
    """

    benchmark: str
    subject: str
    settings: Mapping[str, Any]
    device: str
    out: Path
    rounds: list[Round] = field(default_factory=list)
    path: Path | None = None

    def __post_init__(self) -> None:
        self.env = here(self.device)

    def add(self, measurements: Round) -> None:
        """Append a round, print it and write the record."""
        self.put(len(self.rounds), [measurements])

    def put(self, place: int, rounds: Sequence[Round]) -> None:
        """Replace the rounds from `place` on by these, print them and write the record."""
        self.rounds[place:] = rounds
        for number, measurements in enumerate(rounds, place + 1):
            print(f"{self.subject}, round {number}: {_short(measurements)}", flush=True)
        self.path = self.path or self._new_file()
        write_atomic(self.path, json.dumps(self.record, indent=1) + "\n")

    @property
    def record(self) -> Record:
        """The plain data that is written."""
        return {
            "benchmark": self.benchmark,
            "subject": self.subject,
            "settings": dict(self.settings),
            "medians": medians(self.rounds),
            "rounds": self.rounds,
            "env": self.env,
        }

    def _new_file(self) -> Path:
        self.out.mkdir(parents=True, exist_ok=True)
        stem, number = f"{self.benchmark}-{self.subject}-{machine(self.env)}", 1
        while True:
            path = self.out / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
            try:
                path.touch(exist_ok=False)
                return path
            except FileExistsError:
                number += 1


def take_turns(
    recorder: Recorder, measure: Mapping[str, Callable[[], Numbers]], compare: Callable[[Round], Numbers], count: int
) -> None:
    """Take every measurement in turn, `count` times, and record the rounds with the ratios from `compare`.

    A measurement that fails is reported in one line and omitted from its round; the others are still taken.
    """
    for _ in range(count):
        found = {}
        for what, take in measure.items():
            try:
                found[what] = take()
            except RunFailed as error:
                print(f"error: {what}: {error}", file=sys.stderr, flush=True)
        if found:
            recorder.add({**found, "ratios": compare(found)})
    if not recorder.rounds:
        raise RunFailed(f"nothing was measured of {recorder.subject}")
    if count > 1:
        print(f"{recorder.subject}, medians: {_short(medians(recorder.rounds))}")
    print(recorder.path, flush=True)


def _short(measurements: Round) -> str:
    return json.dumps({what: {k: float(f"{v:.4g}") for k, v in names.items()} for what, names in measurements.items()})


def read_records(folder: Path) -> list[Record]:
    """Return the records of a folder, ordered by file name, without those that have no round yet."""
    texts = (path.read_text() for path in sorted(folder.glob("*.json")))
    return [record for text in texts if text and (record := json.loads(text))["rounds"]]


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a benchmark's parser with the common options."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--out", type=Path, default=RECORDS, help="folder of the records")
    return made


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark's main with resfit's one-line errors."""
    try:
        main()
    except ResfitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _answer(*sys.argv[1:4])
