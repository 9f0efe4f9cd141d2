"""Generate the benchmark page and tables from the records: python benchmarks/page.py [RECORDS] [--out FILE]

Writes one self-contained HTML page with plots. For the project's own records: benchmarks.html in this folder, and
README.md with the same tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import RECORDS, Record, read_records
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import resfit.report
from resfit.files import write_atomic
from resfit.record import summarize
from resfit.report.figures import LineChart, Series
from resfit.report.svg import draw_lines, tone_class
from resfit.report.words import DASH, bare_percent, count, number, percent, rate, thread_count

HERE = Path(__file__).parent
INTRO = "Made by benchmarks/page.py from the records. Medians over the rounds; ratios are taken within a round."


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table's cell; `part`, if given, is also drawn as a bar, 1 being full."""

    text: str
    part: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; text columns come first, numeric columns start at column `numbers`."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: int


@dataclass(frozen=True, kw_only=True)
class Section:
    """The results of one benchmark."""

    title: str
    lead: str
    tables: tuple[Table, ...]
    charts: tuple[LineChart, ...]


def where(record: Record) -> str:
    """Return the machine of a record: its GPU, or the CPU with its fastest feature and threads."""
    env = record["env"]
    if env["gpu"]:
        return str(env["gpu"])
    return f"{env['cpu'].replace('(R)', '')}, {(env['cpu_features'] or ['–'])[-1]}, {thread_count(env['threads'])}"


def accuracy_section(records: Sequence[Record]) -> Section:
    """Return time to an accuracy: a row for each side of each record, and each run as a dot."""
    rows, charts = [], []
    for record in (r for r in records if not r["settings"]["peer_images"]):
        target, series = record["settings"]["target"], []
        for tone, name in enumerate(sides(record)):
            runs = [found[name] for found in record["rounds"] if name in found]
            accuracies, seconds = ([run[field] for run in runs] for field in ("accuracy", "seconds"))
            ratio = record["medians"]["ratios"].get(f"seconds to {name}")
            rows.append(
                cells(
                    name if name != "resfit" else f"resfit {record['subject']}",
                    where(record),
                    percent(target, 1),
                    str(len(runs)),
                    mean(accuracies, bare_percent) + " %",
                    "yes" if summarize(accuracies).mean >= target else "no",
                    mean(seconds, partial(number, digits=2 if seconds[0] < 20 else 0)),
                    number(ratio, 2),
                )
            )
            series += [Series(name=name, tone=tone, points=((run["seconds"], run["accuracy"]),)) for run in runs]
        title = f"Test accuracy of each run, %: {record['subject']} and peers, {where(record)}"
        level = ("target", target, 7)
        charts.append(LineChart(title=title, series=tuple(series), x="second", percent=True, level=level))
    head = ("who", "machine", "target", "n", "accuracy with TTA", "reached", "seconds a run", "resfit's time to it")
    lead = (
        "Runs on one machine, on a CPU in turn, on a GPU all of one side and then of the other. A target is reached "
        "where the mean of the runs reaches it; the ratio is resfit's time to the peer's, below 1 where resfit is "
        "faster."
    )
    return Section(title="Time to an accuracy", lead=lead, tables=(table(head, rows, 3),), charts=tuple(charts))


def sides(record: Record) -> list[str]:
    """Return the names of a record's measurements, in the order of its rounds."""
    return [name for name in record["medians"] if name != "ratios"]


def step_section(records: Sequence[Record]) -> Section:
    """Return training speed: a row for each loop, and images per second by round."""
    rows, charts = [], []
    for record in records:
        medians, series = record["medians"], []
        for tone, name in enumerate(n for n in sides(record) if "images_per_second" in medians[n]):
            precision = name.removeprefix("resfit ")
            share = medians["ratios"].get(f"{precision} share of ceiling")
            named = cells(record["subject"], where(record), name, rate(medians[name]["images_per_second"]))
            ratio = cells("1" if name == "usual" else number(medians["ratios"].get(f"{precision} to usual"), 2))
            part = (Cell(text=percent(share, 0), part=share),)
            taken = [(float(n), found[name]) for n, found in enumerate(record["rounds"], 1) if name in found]
            rows.append((*named, *ratio, *part, *cells(peak(medians[name]), str(len(taken)))))
            points = tuple((n, found["images_per_second"]) for n, found in taken)
            series.append(Series(name=name, tone=tone, points=points))
        title = f"Images a second: {record['subject']}, {where(record)}"
        charts.append(LineChart(title=title, series=tuple(series), x="round", from_zero=True))
    head = ("network", "machine", "loop", "images/s", "× usual", "of the ceiling", "peak memory, GB", "rounds")
    lead = (
        "The usual loop is a DataLoader with a worker for each core (2 to 8), fp32, NCHW. The ceiling is a matrix "
        "product of the same precision, measured in the same round. Peak memory is the process's on the host, then the "
        "GPU's."
    )
    return Section(title="Training step", lead=lead, tables=(table(head, rows, 3),), charts=tuple(charts))


def peak(numbers: dict[str, float]) -> str:
    """Format peak memory in GB, of the host and, if one was used, of the GPU."""
    found = [numbers.get(f"peak_{where}_bytes") for where in ("host", "device")]
    return " + ".join(number(value / 1e9, 2) for value in found if value) or DASH


def ceiling_section(records: Sequence[Record]) -> Section:
    """Return the machine's peak speed: a table for each record."""
    tables = []
    for record in records:
        fp32, bf16 = (record["medians"].get(precision, {}) for precision in ("fp32", "bf16"))
        names = [name for name in fp32 or bf16 if not name.startswith("peak") and not name.endswith(" with backward")]
        rows = [
            (
                Cell(text=name),
                *(speed(numbers, name + kind) for numbers in (fp32, bf16) for kind in ("", " with backward")),
            )
            for name in names
        ]
        tables.append(table((where(record), "fp32", "fp32 with backward", "bf16", "bf16 with backward"), rows, 1))
    lead = (
        "GFLOP/s of a matrix product and of the convolutions of resfit's networks (input channels - output channels, "
        "kernel / stride, @ side), forward, and forward and backward. Bars are shares of the matrix product."
    )
    return Section(title="Ceilings", lead=lead, tables=tuple(tables), charts=())


def speed(numbers: dict[str, float], name: str) -> Cell:
    """Return a cell with the GFLOP/s of a kernel, and its share of the matrix product's."""
    value = numbers.get(name)
    return Cell(text=count(value), part=value and value / numbers["matrix product"])


def scaling_section(records: Sequence[Record]) -> Section:
    """Return how cost scales: a row for each measurement, and a chart for each numeric sweep."""
    rows, charts = [], []
    for record in records:
        for name, numbers in record["medians"].items():
            if name != "ratios":
                work = 6 * numbers["macs"] * numbers["images_per_second"] / 1e9
                ratio = record["medians"]["ratios"].get(name.removeprefix("storage "))
                values = (rate(numbers["images_per_second"]), count(work), peak(numbers), number(ratio, 2))
                rows.append(cells(record["subject"], where(record), name, *values))
        charts += sweep_charts(record)
    head = ("network", "machine", "what", "images/s", "GFLOP/s", "peak memory, GB", "to resident")
    lead = (
        "One thing changed at a time: images in the set, width of the network, side of the images, threads, and where "
        "the images lie. Cold: mapped from a file that is thrown out of memory after each step."
    )
    return Section(title="How cost grows", lead=lead, tables=(table(head, rows, 3),), charts=tuple(charts))


_SWEEPS = (
    ("images", "images", "image"),
    ("width", "params", "parameter"),
    ("side", "side", "pixel"),
    ("threads", "threads", "thread"),
)


def sweep_charts(record: Record) -> Iterator[LineChart]:
    """Yield images per second over what each sweep varies; sweeps with fewer than two points have no chart."""
    medians = record["medians"]
    for sweep, field, unit in _SWEEPS:
        found = [numbers for name, numbers in medians.items() if name.split()[0] == sweep]
        points = tuple((numbers[field], numbers["images_per_second"]) for numbers in found)
        if len(points) > 1:
            title = f"Images a second over {unit}s: {record['subject']}, {where(record)}"
            line = Series(name=sweep, tone=0, points=points)
            yield LineChart(title=title, series=(line,), x=unit, from_zero=True)


def cells(*texts: str) -> tuple[Cell, ...]:
    """Return plain cells."""
    return tuple(Cell(text=text) for text in texts)


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: int) -> Table:
    """Return a table whose numeric columns start at column `numbers`."""
    return Table(head=tuple(head), rows=tuple(map(tuple, rows)), numbers=numbers)


def mean(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Format mean ± standard deviation."""
    s = summarize(values)
    return shown(s.mean) if s.std is None else f"{shown(s.mean)} ± {shown(s.std)}"


def overhead_section(records: Sequence[Record]) -> Section:
    """Return the overhead of runs on Ray and in one process."""
    rows = []
    for record in records:
        for side, name in (("ray", "on Ray"), ("here", "in this process")):
            found, runs = record["medians"][side], str(record["settings"]["runs"])
            times = (number(found[key], 2) for key in ("first", "median", "largest"))
            rows.append(cells(record["subject"], where(record), name, *times, runs))
    head = ("recipe", "machine", "where", "first run, s", "median of the others, s", "largest of them, s", "runs")
    lead = (
        "From the end of the run before to the end of a run, less the run's own seconds. The first one on Ray also "
        "joins the cluster, starts a process and imports torch."
    )
    return Section(title="What a run costs beyond its own time", lead=lead, tables=(table(head, rows, 3),), charts=())


def start_section(records: Sequence[Record]) -> Section:
    """Return how soon commands answer and training starts."""
    rows = []
    for record in records:
        for name, found in record["medians"].items():
            if name != "ratios":
                named = f"training {record['subject']}, to its first step" if name == "first step" else name
                slowest = max(measured[name]["seconds"] for measured in record["rounds"])
                numbers = (number(found["seconds"], 2), number(slowest, 2), peak(found), str(len(record["rounds"])))
                rows.append(cells(named, where(record), *numbers))
    head = ("what", "machine", "seconds", "slowest", "peak memory of a run, GB", "rounds")
    lead = (
        "A process of its own each, from its start to its end; a training to the end of its first step, with the start "
        "of Python, imports and loading. Its memory is that of one epoch with all that belongs to a run."
    )
    return Section(title="Start", lead=lead, tables=(table(head, rows, 2),), charts=())


SECTIONS = {
    "to_accuracy": accuracy_section,
    "step": step_section,
    "ceiling": ceiling_section,
    "scaling": scaling_section,
    "overhead": overhead_section,
    "start": start_section,
}


def sections(records: Sequence[Record]) -> list[Section]:
    """Return a section for each benchmark that has records."""
    groups = {name: [record for record in records if record["benchmark"] == name] for name in SECTIONS}
    return [SECTIONS[name](group) for name, group in groups.items() if group]


def markdown(records: Sequence[Record]) -> str:
    """Return the tables, and the commands that produced the records, as Markdown."""
    parts = [f"# Benchmarks\n\n{INTRO}\n"]
    for section in sections(records):
        parts.append(f"## {section.title}\n\n{section.lead}\n")
        parts += [_markdown_table(found) for found in section.tables]
    commands = dict.fromkeys(f"- `python benchmarks/{r['env']['command']}` on {where(r)}\n" for r in records)
    return "\n".join([*parts, f"Commands:\n\n{''.join(commands)}"])


def _markdown_table(found: Table) -> str:
    rule = ["---"] * found.numbers + ["---:"] * (len(found.head) - found.numbers)
    rows = [found.head, rule, *([cell.text for cell in row] for row in found.rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def html(records: Sequence[Record]) -> str:
    """Return one self-contained HTML page."""
    folders = [HERE, Path(resfit.report.__file__).parent]
    loader = FileSystemLoader(folders)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(draw_lines=draw_lines, tone_class=tone_class)
    return made.get_template("benchmarks.html.j2").render(sections=sections(records), records=records, intro=INTRO)


def main() -> None:
    """Write the page and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", default=RECORDS, help="folder of the records")
    parser.add_argument("--out", type=Path, help="the page (benchmarks.html in the records' folder, or here)")
    options = parser.parse_args()
    records, own = read_records(options.records), options.records.resolve() == RECORDS.resolve()
    if own:
        print(write_atomic(HERE / "README.md", markdown(records)))
    print(write_atomic(options.out or (HERE if own else options.records) / "benchmarks.html", html(records)))


if __name__ == "__main__":
    main()
