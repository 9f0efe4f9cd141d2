"""The command line: a thin layer over the Python API. Nothing imports it; torch is imported only where a command trains
or scores."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from resfit.errors import BadInput, ResfitError
from resfit.fields import nearest

if TYPE_CHECKING:
    from resfit.record import RunRecord

_TARGET = "a recipe's name, a recipe or spec YAML file, a run folder, or a model.safetensors"
_RECIPE = "a recipe's name or a recipe YAML file"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for a failed run, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        words, overrides = _take_overrides([word for word in arguments if word != "--debug"])
        options = _parser().parse_args(words)
        if overrides and options.command != "train":
            raise BadInput(f"recipe fields are for training (--{next(iter(overrides))}): leave it out")
        if getattr(options, "offline", False):
            os.environ["RESFIT_OFFLINE"] = "1"
        status: int = options.run(options, overrides)
        return status
    except ResfitError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted: go on from the last checkpoint with resfit train --resume RUN", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        reason = (str(error).splitlines() or [""])[0]
        print(
            f"error: {type(error).__name__}: {reason} (in resfit): repeat with --debug and report it",
            file=sys.stderr,
        )
        return 1


class _Parser(argparse.ArgumentParser):
    """argparse with resfit's one-line errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> Any:
        """Refuse the words, naming the nearest command where that is what is wrong."""
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            hint = nearest(wrong[1], wrong[2].replace("'", "").split(", "))
            raise BadInput(f"unknown command ({wrong[1]}): {hint}")
        raise BadInput(f"{message} ({self.prog}): see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="resfit",
        description="Fit residual networks to a parameter budget and train them.",
        epilog="Begin with: resfit train digits. Any command takes --debug, which shows the traceback of an error.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=_no_command, command=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_recipes(commands)
    _add_show(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_report(commands)
    return parser


def _no_command(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    if options.version:
        from resfit.version import __version__

        print(f"resfit {__version__}")
        return 0
    _parser().print_help()
    return 2


def _take_overrides(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take --section.field VALUE out of a command's words: the words left, and {"section.field": value}."""
    left: list[str] = []
    overrides: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        if not name.startswith("--") or "." not in name:
            left.append(word)
            continue
        value = text if equals else next(rest, None)
        if value is None:
            raise BadInput(f"no value ({name}): give one")
        try:
            overrides[name.removeprefix("--").replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadInput(f"{value!r} is not a value ({name}): give a number, a word or a YAML list") from None
    return left, overrides


# recipes


def _add_recipes(commands: Any) -> None:
    parser = commands.add_parser("recipes", help="list the named recipes", description="List the named recipes.")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.cost import cost
    from resfit.recipe import get_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = get_recipe(name)
        price = cost(recipe.spec)
        rows.append(
            {
                "name": name,
                "data": recipe.data.name,
                "params": price.params,
                "macs": price.macs,
                "budget": recipe.budget,
                "epochs": recipe.train.epochs,
                "description": recipe.description,
                "result": _recorded_result(name),
            }
        )
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    _print_table(
        ["recipe", "data", "parameters", "MACs", "epochs", "recorded result", "what it is for"],
        [
            [r["name"], r["data"], f"{r['params']:,}", f"{r['macs']:,}", r["epochs"], _result_text(r), r["description"]]
            for r in rows
        ],
        right=(2, 3, 4),
    )
    return 0


def _recorded_result(name: str) -> dict[str, Any] | None:
    """The result of a recipe as shipped with this version, from the records of its own runs."""
    from importlib import resources

    file = resources.files("resfit") / "recipes" / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    result: dict[str, Any] | None = results.get(name)
    return result


def _result_text(row: dict[str, Any]) -> str:
    result = row["result"]
    if not result:
        return "none yet"
    spread = f" ± {100 * result['std']:.2f}" if result["std"] is not None else ""
    return f"{100 * result['mean']:.2f}{spread} % (n={result['n']})"


# show


def _add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="price a network, layer by layer",
        description="Price a network without building it: layer table, totals and the budget's verdict.",
    )
    parser.add_argument("target", metavar="TARGET", help=_TARGET)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--budget", metavar="N", help="hold it against this many parameters (500k, 5M)")
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.budget import judge, parse_count
    from resfit.cost import cost
    from resfit.fields import to_plain
    from resfit.target import find_target

    target = find_target(options.target)
    budget = parse_count(options.budget) if options.budget else target.budget
    price, verdict = cost(target.spec), judge(target.spec, budget)
    if options.json:
        facts = {
            "name": target.name,
            "params": price.params,
            "frozen": price.frozen,
            "macs": price.macs,
            "activation_bytes": price.activation_bytes,
            "budget": budget,
            "fits": verdict.fits,
            "spec": target.spec.to_dict(),
            "layers": [{**to_plain(layer), "activation_bytes": layer.activation_bytes} for layer in price.layers],
        }
        print(json.dumps(facts, indent=1))
        return 0
    _print_table(
        ["layer", "kind", "output", "parameters", "MACs", "KB"],
        [
            [
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)),
                f"{layer.params:,}",
                f"{layer.macs:,}",
                f"{layer.activation_bytes / 1000:,.1f}",
            ]
            for layer in price.layers
        ],
        right=(3, 4, 5),
    )
    print(f"{target.name}: {verdict}")
    print(f"{price.macs:,} MACs and {price.activation_bytes / 1e6:.2f} MB of activations (fp32) for one image")
    if price.frozen:
        print(f"{price.frozen:,} frozen filter values beside them")
    return 0


# train


def _add_train(commands: Any) -> None:
    from resfit.recipe import Recipe

    parser = commands.add_parser(
        "train",
        help="train a recipe: one run a seed, each with its record and report",
        description="Train a recipe. The run folder OUT/RECIPE/SEED holds recipe, record, metrics, model and report.",
        usage="resfit train RECIPE [options] [--section.field VALUE ...]",
        epilog=f"Every field of a recipe can be given as --section.field VALUE, as in --train.epochs 5 or "
        f"--spec.stages.0.channels 32. {_field_help(Recipe)}",
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=_RECIPE)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first run's seed (0)")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="this many runs, of seeds S, S+1, ... (1)")
    parser.add_argument("--budget", metavar="N", help="refuse a network of more parameters (the recipe's, mostly 5M)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (runs)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an unfinished run folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (auto)")
    _add_data_options(parser)
    parser.set_defaults(run=_train)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="where the data lies; else RESFIT_DATA_DIR, else the cache folder, into which it is downloaded",
    )
    parser.add_argument("--offline", action="store_true", help="never open a socket (or RESFIT_OFFLINE=1)")


def _field_help(kind: Any) -> str:
    """The sections of a recipe and their fields, in words."""
    import dataclasses
    from typing import get_type_hints

    hints = get_type_hints(kind)
    sections = [name for name in hints if dataclasses.is_dataclass(hints[name])]
    parts = [f"{name}: {', '.join(f.name for f in dataclasses.fields(hints[name]))}" for name in sections]
    return "Sections and fields: " + "; ".join(parts) + "."


def _train(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.budget import parse_count, require_fit
    from resfit.recipe import get_recipe

    if options.budget:
        overrides = {**overrides, "budget": parse_count(options.budget)}
    recipe_target, seed, out = _what_to_train(options, overrides)

    recipe = get_recipe(recipe_target, overrides)
    if options.runs < 1:
        raise BadInput(f"runs is {options.runs} (--runs): give at least 1")
    if seed < 0:
        raise BadInput(f"seed is {seed} (--seed): give 0 or more")
    print(f"{recipe.name}: {require_fit(recipe.spec, recipe.budget)}", flush=True)
    from resfit.progress import Progress
    from resfit.run import run_folder, train, write_summary

    folders = [run_folder(out, recipe, seed + n) for n in range(options.runs)]
    if taken := [folder for folder in folders if (folder / "record.json").exists()]:
        raise BadInput(f"a finished run lies there ({taken[0]}): give another --out or --seed, or move it away")
    records = []
    for n, folder in enumerate(folders):
        with Progress(recipe.train.epochs) as progress:
            record = train(
                recipe,
                seed=seed + n,
                data_dir=options.data_dir,
                out=out,
                device=options.device,
                offline=options.offline,
                resume=options.resume is not None,
                observer=progress,
            )
        records.append(record)
        _print_result(record, folder)
    if len(records) > 1:
        write_summary(records, out / recipe.name)
        _print_summaries(records)
    return 0


def _what_to_train(options: argparse.Namespace, overrides: dict[str, Any]) -> tuple[str, int, Path]:
    """Recipe, first seed and parent folder: of a new run, or of the folder to resume."""
    if options.resume is None:
        if options.recipe is None:
            raise BadInput("no recipe (RECIPE): give a name that resfit recipes lists, or a YAML file")
        return options.recipe, options.seed, options.out
    folder = options.resume.resolve()
    if not (folder / "recipe.yaml").exists() or not folder.name.isdecimal():
        raise BadInput(f"not a run folder ({options.resume}): give one that resfit train began")
    if options.recipe is not None or overrides or options.runs != 1:
        raise BadInput("a resumed run has its recipe and its seed (--resume): give the run folder alone")
    return str(folder / "recipe.yaml"), int(folder.name), folder.parent.parent


def _print_result(record: RunRecord, folder: Path) -> None:
    tta = record.test.accuracy_tta
    rows = [["test accuracy", f"{100 * record.test.accuracy:.2f} %"]]
    if tta is not None:
        rows.append(["with test-time augmentation", f"{100 * tta:.2f} %"])
    rows += [
        ["parameters", f"{record.params:,}"],
        ["seconds", f"{record.seconds_to_result:.1f}"],
        ["images/s in training", f"{record.images_per_second:,.0f}"],
        ["run folder", str(folder)],
    ]
    if record.protocol["peeking"]:
        rows.insert(1, ["protocol", "peeked at the test set to choose the epoch"])
    _print_table(["result", f"{record.recipe}, seed {record.seed}"], rows)


def _print_summaries(records: Sequence[RunRecord]) -> None:
    from resfit.record import summarize

    rows = []
    for what, values in (
        ("test accuracy", [r.test.accuracy for r in records]),
        ("with test-time augmentation", [r.test.accuracy_tta for r in records if r.test.accuracy_tta is not None]),
    ):
        if not values:
            continue
        s = summarize(values)
        interval = f"{100 * s.interval[0]:.2f} to {100 * s.interval[1]:.2f} %" if s.interval else "needs n >= 2"
        spread = f" ± {100 * s.std:.2f}" if s.std is not None else ""
        rows.append([what, s.n, f"{100 * s.mean:.2f}{spread} %", interval])
    _print_table([records[0].recipe, "n", "mean ± deviation", "95 % interval of the mean"], rows, right=(1,))


# evaluate


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a trained network on its test set",
        description="Score a trained network on the test set of the data that it was trained on.",
    )
    parser.add_argument("target", metavar="TARGET", help="a run folder or a model.safetensors")
    parser.add_argument("--tta", action="store_true", help="score with flips and one-pixel shifts as well")
    parser.add_argument("--data", metavar="NAME", help="the data set, for a model outside its run folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_data_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.fields import to_plain
    from resfit.run import evaluate

    metrics = evaluate(
        options.target,
        tta="flip+shift" if options.tta else "none",
        data_dir=options.data_dir,
        device=options.device,
        offline=options.offline,
        data=options.data,
    )
    if options.json:
        print(json.dumps(to_plain(metrics), indent=1))
        return 0
    rows = [["accuracy", f"{100 * metrics.accuracy:.2f} %"]]
    if metrics.accuracy_tta is not None:
        rows.append(["with test-time augmentation", f"{100 * metrics.accuracy_tta:.2f} %"])
    rows += [["loss", f"{metrics.loss:.4f}"], ["calibration error (ECE)", f"{metrics.ece:.4f}"]]
    _print_table(["test set", options.target], rows)
    _print_table(
        ["class", "precision", "recall", "F1", "images"],
        [
            [c.name, f"{100 * c.precision:.2f} %", f"{100 * c.recall:.2f} %", f"{100 * c.f1:.2f} %", c.support]
            for c in metrics.per_class
        ],
        right=(1, 2, 3, 4),
    )
    return 0


# compare


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="the difference of two recipes' means, with its interval",
        description="Compare recipes by their runs: means with deviations, and each later recipe minus the first.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, or folders that hold several")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.fields import to_plain
    from resfit.record import compare, find_records, group_runs, summarize

    groups = group_runs(find_records(options.runs))
    if len({record.data["name"] for runs in groups.values() for record in runs}) > 1:
        raise BadInput("the runs are on different data sets (RUN): compare runs on one")
    values = {name: [record.accuracy for record in runs] for name, runs in groups.items()}
    first = next(iter(values))
    differences = {name: compare(values[first], values[name]) for name in values if name != first}
    if options.json:
        summaries = {name: to_plain(summarize(group)) for name, group in values.items()}
        print(json.dumps({"baseline": first, "runs": summaries, "differences": to_plain(differences)}, indent=1))
        return 0
    rows = []
    for name, group in values.items():
        s = summarize(group)
        spread = f" ± {100 * s.std:.2f}" if s.std is not None else ""
        rows.append([name, s.n, f"{100 * s.mean:.2f}{spread} %", _difference_text(differences.get(name))])
    _print_table(["runs", "n", "test accuracy", f"difference from {first} (95 % interval)"], rows, right=(1,))
    return 0


def _difference_text(difference: Any) -> str:
    if difference is None:
        return "baseline"
    text = f"{100 * difference.difference:+.2f} points"
    if difference.interval is None:
        return f"{text} (an interval needs two runs of each)"
    low, high = (100 * bound for bound in difference.interval)
    return f"{text} ({low:+.2f} to {high:+.2f}, p = {difference.p_value:.3f})"


# report


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="one self-contained HTML page of one or several runs",
        description="Write one self-contained HTML page from the records of one or several runs.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, or folders that hold several")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (report.html)")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.record import find_records
    from resfit.report import write_report

    records = find_records(options.runs)
    print(f"{write_report(records, options.out)}: {len(records)} run{'s' if len(records) > 1 else ''}")
    return 0


def _print_table(header: list[str], rows: list[list[Any]], right: tuple[int, ...] = ()) -> None:
    """A table on standard output, as wide as its cells need where that is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for n, name in enumerate(header):
        table.add_column(Text(name), justify="right" if n in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.measure(table).maximum, 200))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
