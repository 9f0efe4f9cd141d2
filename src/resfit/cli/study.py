"""`resfit study`: compare settings of a recipe, each with several seeds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.cli.common import REPEAT, add_data_options, add_scale_options, check_scale_options, print_table
from resfit.cli.executors import add_executor_options, check_executor_options, executor
from resfit.errors import BadInput
from resfit.interrupt import Interruptible

if TYPE_CHECKING:
    from resfit.studyrecord import PointRecord, StudyRecord


def add(commands: Any) -> None:
    """Add the `study` command."""
    parser = commands.add_parser(
        "study",
        help="compare settings of a recipe, each with several seeds",
        description="Run every point of a study with several seeds into OUT/STUDY/POINT/SEED, and compare the points. "
        "Running the same command again continues where it stopped: finished runs are not repeated.",
        epilog="Fields given as --section.field VALUE apply to every point that does not set the field itself.",
        usage="resfit study STUDY [options] [--section.field VALUE ...]",
    )
    parser.add_argument("study", metavar="STUDY", nargs="?", help="a study's name (see --list) or a study YAML file")
    parser.add_argument("--list", action="store_true", help="list the named studies")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--runs", type=int, metavar="N", help="number of seeds per point: 0 ... N-1 (default: the study's)"
    )
    add_scale_options(parser)
    add_executor_options(parser, "default: one per CUDA device, or one without CUDA")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent folder of the results (default: runs)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add_data_options(parser)
    parser.set_defaults(run=_study, takes_fields=True)


def _study(options: argparse.Namespace) -> int:
    from resfit.study.plan import get_study

    if options.list:
        return _list(options.json)
    if options.study is None:
        raise BadInput("no study (STUDY): give a name listed by resfit study --list, or a YAML file")
    check_scale_options(options)
    check_executor_options(options)
    study = get_study(options.study)
    seeds = study.runs if options.runs is None else options.runs
    if seeds < 1:
        raise BadInput(f"runs is {seeds} (--runs): give at least 1")
    from resfit.cli.board import Board
    from resfit.run import for_folder
    from resfit.study.execute import execute

    recipes = study.recipes(
        options.overrides,
        epochs=options.epochs,
        fraction=options.fraction,
        counted=lambda recipe: for_folder(recipe, options.data_dir, given="spec.num_classes" in options.overrides),
    )
    out = options.out / study.name
    with Interruptible(REPEAT), Board(list(recipes)) as board:
        result = execute(study, recipes, executor(options, out), seeds=seeds, watcher=board)
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _print_result(result, out)
    return 1 if result.failed else 0


def _list(as_json: bool) -> int:
    from resfit.study.plan import get_study, study_names

    studies = [get_study(name) for name in study_names()]
    rows: list[dict[str, Any]] = [
        {
            "name": study.name,
            "recipe": study.recipe,
            "points": list(study.settings()),
            "baseline": study.baseline,
            "runs": study.runs,
            "description": study.description,
        }
        for study in studies
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    print_table(
        ["study", "recipe", "points", "seeds", "baseline", "what it compares"],
        [[r["name"], r["recipe"], len(r["points"]), r["runs"], r["baseline"], r["description"]] for r in rows],
        right=(2, 3),
    )
    return 0


def _print_result(result: StudyRecord, out: Path) -> None:
    rows = [_row(point, point.name == result.baseline) for point in result.points]
    against = f"against {result.baseline}"
    print_table(
        [result.study, "n", f"{result.judged_by} accuracy", "95 % interval", against, "p", "p, corrected"],
        rows,
        right=(1,),
    )
    if result.comparisons > 1:
        print(
            f"p-values are corrected for {result.comparisons} comparisons (Holm); a point with p below 0.05 "
            "differs from the baseline"
        )
    for run in result.failed:
        print(f"failed: {run.point}, seed {run.seed}: {run.error}")
    print(f"{result.finished} of {result.wanted} runs are finished; {out / 'report.html'}, {out / 'study.json'}")


def _row(point: PointRecord, baseline: bool) -> list[Any]:
    from resfit.report.words import interval, p_value, plus_minus

    if point.accuracy is None:
        return [point.name, 0, "", "", "", "", ""]
    accuracy, against = point.accuracy, point.against_baseline
    bounds = f"{interval(accuracy.interval)} %" if accuracy.interval else "-"
    row = [point.name, accuracy.n, f"{plus_minus(accuracy.mean, accuracy.std)} %", bounds]
    if against is None:
        return [*row, "baseline" if baseline else "-", "", ""]
    p_values = (against.p_value, against.p_corrected)
    return [*row, f"{100 * against.difference:+.2f} points", *map(p_value, p_values)]
