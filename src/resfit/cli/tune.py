"""`resfit tune`: search for better settings of a recipe on its validation split."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.cli.common import (
    RECIPE,
    REPEAT,
    add_data_options,
    add_scale_options,
    check_scale_options,
    print_table,
)
from resfit.cli.executors import add_executor_options, check_executor_options, on_ray
from resfit.errors import BadInput, RunFailed
from resfit.interrupt import Interrupted, Interruptible

if TYPE_CHECKING:
    from resfit.tunerecord import TuneRecord


def add(commands: Any) -> None:
    """Add the `tune` command."""
    parser = commands.add_parser(
        "tune",
        help="search for better settings of a recipe on its validation split",
        description="Search a space of settings with Optuna (TPE). Networks over the budget are refused before "
        "training; hopeless trials are stopped early; the test set is never scored. Running the same "
        "command again continues where it stopped. Writes best.yaml, tune.json and report.html to "
        "OUT/RECIPE-tune.",
        epilog="Fields given as --section.field VALUE apply to every trial; the space must not vary them.",
        usage="resfit tune RECIPE [options] [--section.field VALUE ...]",
    )
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="total number of trained trials (default: 20)"
    )
    parser.add_argument(
        "--space",
        default="seed002",
        metavar="SPACE",
        help="a space's name, or a YAML file of fields (default: seed002)",
    )
    add_scale_options(parser)
    add_executor_options(parser, "default: 1")
    parser.add_argument(
        "--budget", metavar="N", help="refuse networks with more parameters (default: the recipe's, usually 5M)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the search and of every trial (default: 0)"
    )
    parser.add_argument(
        "--storage",
        metavar="FILE|URL",
        help="where to store the trials: a journal file, or a database such as postgresql://user@host/name "
        "(default: a journal in the output folder)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent folder of the results (default: runs)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_data_options(parser)
    parser.set_defaults(run=_tune, takes_fields=True)


def _tune(options: argparse.Namespace) -> int:
    overrides: dict[str, Any] = options.overrides
    from resfit.counts import parse_count
    from resfit.recipe import checked_seed, get_recipe
    from resfit.tune.space import get_space

    check_scale_options(options)
    check_executor_options(options)
    if options.budget is not None:
        overrides = {**overrides, "budget": parse_count(options.budget)}
    if options.trials < 1:
        raise BadInput(f"trials is {options.trials} (--trials): give at least 1")
    checked_seed(options.seed)
    recipe, space = get_recipe(options.recipe, overrides), get_space(options.space)
    space.refuse_fixed(overrides)
    from resfit.run import for_folder
    from resfit.tune.search import Search, record, run_search

    folder = options.out / f"{recipe.name}-tune"
    search = Search(
        recipe=for_folder(recipe, options.data_dir, given="spec.num_classes" in overrides),
        space=space,
        storage=options.storage or str(folder / "journal.log"),
        epochs=options.epochs,
        fraction=options.fraction,
        seed=options.seed,
        data_dir=options.data_dir,
        offline=options.offline,
        device=options.device if options.ray is None else "auto",
    )
    search.require_own(folder)
    cluster = None if options.ray is None else on_ray(options, folder)
    try:
        with Interruptible(REPEAT):
            result = run_search(search, options.trials, workers=options.workers or 1, cluster=cluster)
    except (Interrupted, RunFailed):
        _write(record(search), folder)  # keep the results of the earlier trials
        raise
    _write(result, folder)
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _print_result(result, folder, options.trials)
    return 0


def _write(result: TuneRecord, folder: Path) -> None:
    from resfit.files import write_atomic
    from resfit.recipe import Recipe
    from resfit.report.tune import write_search

    best = folder / "best.yaml"
    edited = best.exists() and best.read_text() != _best_yaml(folder)
    write_atomic(folder / "tune.json", json.dumps(result.to_dict(), indent=1))
    write_search(result, folder / "report.html")
    if result.best_recipe is not None and not edited:
        write_atomic(best, Recipe.from_dict(result.best_recipe).to_yaml())
    elif edited:
        advice = "move it away and repeat the command to have it written anew"
        print(f"{best} was edited and is left as it is: {advice}", file=sys.stderr)


def _best_yaml(folder: Path) -> str:
    """Return the best.yaml that belongs to the folder's tune.json; "" if there is none."""
    from resfit.recipe import Recipe
    from resfit.tunerecord import read_search

    then = read_search(folder).best_recipe if (folder / "tune.json").exists() else None
    return Recipe.from_dict(then).to_yaml() if then is not None else ""


def _print_result(result: TuneRecord, folder: Path, wanted: int) -> None:
    outcomes = [trial.outcome for trial in result.trials]
    refused = outcomes.count("refused")
    print(
        f"{result.trained} of {wanted} trials were trained, {outcomes.count('pruned')} of them stopped early; "
        f"{refused} more were refused before training"
    )
    best = next((trial for trial in result.trials if trial.number == result.best), None)
    if best is None or best.accuracy is None:
        print("no trial is complete: run the same command again to continue")
        return
    shares = {path: f"{share:.0%}" for path, share in result.importance.items()}
    rows = [[path, value, shares.get(path, "-")] for path, value in best.values.items()]
    print_table([f"best: trial {best.number}", f"{100 * best.accuracy:.2f} % validation", "importance"], rows)
    print(f"the test set was not scored; train the best settings in full with resfit train {folder / 'best.yaml'}")
    print(f"report: {folder / 'report.html'}")
