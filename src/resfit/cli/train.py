"""`resfit train`: train a recipe, one run per seed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.cli.common import (
    RECIPE,
    REPEAT,
    TWO_BUDGETS,
    add_data_options,
    add_scale_options,
    check_scale_options,
    print_table,
)
from resfit.cli.executors import add_executor_options, check_executor_options, executor
from resfit.errors import BadInput
from resfit.interrupt import Interrupted, Interruptible

if TYPE_CHECKING:
    from resfit.recipe import Recipe
    from resfit.record import RunRecord
    from resfit.studyrecord import FailedRun


def add(commands: Any) -> None:
    """Add the `train` command."""
    from resfit.recipe import Recipe

    parser = commands.add_parser(
        "train",
        help="train a recipe: one run per seed, each with its own record and report",
        description="Train a recipe. The run folder OUT/RECIPE/SEED holds the recipe, record, metrics, model and "
        "report.",
        usage="resfit train RECIPE [options] [--section.field VALUE ...]",
        epilog="With --workers or --ray, running the same command again continues: finished runs are not repeated. "
        "Every field of a recipe can be set with --section.field VALUE, for example --optim.lr 0.05 or "
        "--spec.stages.0.channels 32. " + _field_help(Recipe),
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=RECIPE)
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the first run (default: 0)")
    parser.add_argument(
        "--runs", type=int, default=1, metavar="N", help="number of runs, with the seeds S, S+1, ... (default: 1)"
    )
    add_scale_options(parser)
    parser.add_argument(
        "--budget", metavar="N", help="refuse networks with more parameters (default: the recipe's, usually 5M)"
    )
    parser.add_argument("--fit", metavar="N", help="scale the network's widths to fill this budget (500k, 5M)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="parent folder of the run folders (default: runs)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue the unfinished run in this folder")
    parser.add_argument("--override", action="store_true", help="resume even if the recipe or the kernels have changed")
    parser.add_argument(
        "--init", metavar="TARGET", help="start from the weights of a run folder or a model.safetensors (fine-tuning)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add_executor_options(parser, "default: one at a time, in this process")
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="LOG",
        help="also log to tensorboard, mlflow or mlflow=URI; logs are stored in the run folder unless a URI is "
        "given; may be repeated",
    )
    add_data_options(parser)
    parser.set_defaults(run=_train, takes_fields=True)


def _field_help(kind: Any) -> str:
    """Return the help text that lists a recipe's sections and their fields."""
    import dataclasses
    from typing import get_args, get_type_hints

    hints = get_type_hints(kind)
    either = {name: get_args(hint) or (hint,) for name, hint in hints.items()}  # sections may be optional
    sections = {name: kind for name, kinds in either.items() for kind in kinds if dataclasses.is_dataclass(kind)}
    parts = [f"{name}: {', '.join(f.name for f in dataclasses.fields(kind))}" for name, kind in sections.items()]
    return "Sections and fields: " + "; ".join(parts) + "."


def _train(options: argparse.Namespace) -> int:
    from resfit.budget import require_fit
    from resfit.recipe import checked_seed

    if options.override and options.resume is None:
        raise BadInput("nothing to override (--override): use it with --resume RUN")
    target, seed, out = _what_to_train(options)
    if options.runs < 1:
        raise BadInput(f"runs is {options.runs} (--runs): give at least 1")
    checked_seed(seed)
    checked_seed(seed + options.runs - 1)
    check_executor_options(options)
    recipe = _recipe(options, target)
    print(f"{recipe.name}: {require_fit(recipe.spec, recipe.budget)}", flush=True)
    if options.workers is not None or options.ray is not None:
        return _train_many(options, recipe, range(seed, seed + options.runs), out)
    from resfit.distributed import is_main
    from resfit.logs import make_loggers
    from resfit.observer import Observers
    from resfit.progress import Progress
    from resfit.resume import require_unused
    from resfit.run import run_folder, train

    folders = [run_folder(out, recipe, seed + n) for n in range(options.runs)]
    for folder in folders if options.resume is None else ():  # before the first run, which may take hours
        require_unused(folder)
    data = None  # loaded once: the same for every seed
    for n, folder in enumerate(folders):
        loggers = make_loggers(options.log)
        with Progress() as progress, _others_named(seed + n + 1, options.runs - n - 1):
            record = train(
                recipe,
                seed=seed + n,
                data_dir=options.data_dir,
                out=out,
                device=options.device,
                offline=options.offline,
                resume=options.resume is not None,
                init=options.init,
                override=options.override,
                data=data,
                observer=Observers([progress, *loggers]),
            )
        data = progress.data
        _print_result(record, folder)
    if is_main():
        _summarize(record, out / recipe.name)
    return 0


def _recipe(options: argparse.Namespace, target: str) -> Recipe:
    """Return the recipe with all options applied: fields, number of classes, network size, training length."""
    from resfit.counts import parse_count
    from resfit.recipe import get_recipe
    from resfit.scale import fitted, scaled

    overrides: dict[str, Any] = options.overrides
    if options.budget is not None:
        if options.fit is not None:
            raise BadInput(TWO_BUDGETS)
        overrides = {**overrides, "budget": parse_count(options.budget)}
    check_scale_options(options)
    recipe = get_recipe(target, overrides)
    if overrides and recipe.deviations and options.resume is None:
        changes = ", ".join(f"{field} {json.dumps(value)}" for field, value in overrides.items())
        said = f"overridden on the command line: {changes}"
        recipe = replace(recipe, deviations=(*recipe.deviations, said))
    if recipe.data.name == "folder" and options.resume is None:
        from resfit.run import for_folder

        recipe = for_folder(recipe, options.data_dir, given="spec.num_classes" in overrides)
    if options.fit is not None:
        recipe = fitted(recipe, parse_count(options.fit, "--fit"))
    if options.epochs is not None or options.fraction != 1:
        recipe = scaled(recipe, (options.epochs or recipe.train.epochs) / recipe.train.epochs, options.fraction)
    return recipe


@contextmanager
def _others_named(seed: int, left: int) -> Iterator[None]:
    """Add to an interruption's message how to start the `left` remaining runs, whose first seed is `seed`."""
    try:
        yield
    except Interrupted as interruption:
        if left:
            interruption.args = (f"{interruption}; then train the remaining runs with --seed {seed} --runs {left}",)
        raise


def _train_many(options: argparse.Namespace, recipe: Recipe, seeds: range, out: Path) -> int:
    """Train in separate processes or on a cluster; finished runs are not repeated."""
    if options.resume is not None or options.log:
        raise BadInput("--resume and --log only work in a single process (--workers, --ray): leave these out")
    from resfit.cli.board import Board
    from resfit.executors.jobs import Job, run_jobs

    jobs = [Job(recipe=recipe, seed=seed) for seed in seeds]
    failed: list[FailedRun] = []
    with Interruptible(REPEAT), Board([recipe.name]) as board:
        records = run_jobs(jobs, executor(options, out), board, failed)
    for run in failed:
        print(f"failed: {run.point}, seed {run.seed}: {run.error}")
    if records:
        _summarize(records[-1], out / recipe.name)
    print(f"{len(records)} of {len(jobs)} runs are finished; {out / recipe.name}")
    return 1 if failed else 0


def _what_to_train(options: argparse.Namespace) -> tuple[str, int, Path]:
    """Return recipe, first seed and parent folder, of a new run or of the run folder to resume."""
    from resfit.recipe import plain_recipe

    if options.resume is None:
        if options.recipe is None:
            raise BadInput("no recipe (RECIPE): give a name listed by resfit recipes, or a YAML file")
        return options.recipe, options.seed or 0, options.out or Path("runs")
    folder = options.resume.resolve()
    if not (folder / "recipe.yaml").exists() or not folder.name.isdecimal():
        raise BadInput(f"not a run folder ({options.resume}): give one that resfit train created")
    scaled = options.epochs is not None or options.fraction != 1 or options.fit is not None
    placed = options.seed is not None or options.out is not None
    if options.recipe is not None or options.runs != 1 or options.init or scaled or placed:
        raise BadInput(
            "a resumed run keeps its recipe, length, network, seed, weights and folder (--resume): give only "
            "the run folder"
        )
    if (name := plain_recipe(str(folder / "recipe.yaml"))["name"]) != folder.parent.name:
        raise BadInput(f"the run's folder was renamed ({folder.parent}): rename it back to {name}")
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
    if record.peeked:
        rows.insert(1, ["protocol", "peeked at the test set to choose the epoch"])
    print_table(["result", f"{record.recipe}, seed {record.seed}"], rows)


def _summarize(record: RunRecord, folder: Path) -> None:
    """Write and print a summary of all finished runs of the recipe, earlier ones too, if there are two or more."""
    from resfit.record import runs_alike, summarize, write_summary
    from resfit.report.words import interval, plus_minus

    try:
        records = runs_alike(folder, record)
    except BadInput as error:  # caused by an earlier run's record; this run succeeded
        print(f"no summary of all runs: {error}", file=sys.stderr)
        return
    if len(records) < 2:
        return
    write_summary(records, folder)
    rows = []
    for what, values in (
        ("test accuracy", [r.test.accuracy for r in records]),
        ("with test-time augmentation", [r.test.accuracy_tta for r in records if r.test.accuracy_tta is not None]),
    ):
        if not values:
            continue
        s = summarize(values)
        bounds = f"{interval(s.interval)} %" if s.interval else "needs n >= 2"
        rows.append([what, s.n, f"{plus_minus(s.mean, s.std)} %", bounds])
    print_table([records[0].recipe, "n", "mean ± deviation", "95 % interval of the mean"], rows, right=(1,))
