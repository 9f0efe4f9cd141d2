"""Options that choose where runs execute: this process, several local processes, or a Ray cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resfit.errors import BadInput
from resfit.processes import under_torchrun

if TYPE_CHECKING:
    from resfit.executors.cluster import OnRay
    from resfit.executors.local import Executor, RunOptions


def add_executor_options(parser: argparse.ArgumentParser, workers: str) -> None:
    """Add --workers, --ray, --cpus-per-run and --gpus-per-run; `workers` describes the default number."""
    parser.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help=f"number of parallel runs on this machine, each in its own process ({workers})",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster: its address, auto for the one this machine belongs to, or local to start one "
        "on this machine; --workers is then the maximum number of parallel runs (default: as many as fit)",
    )
    parser.add_argument(
        "--cpus-per-run",
        type=int,
        metavar="N",
        help="on Ray: CPU cores per run (default: 1 if the cluster has GPUs, else all cores of its smallest node)",
    )
    parser.add_argument(
        "--gpus-per-run",
        type=float,
        metavar="N",
        help="on Ray: GPUs per run, such as 1 or 0.5 (default: 1 if there are any)",
    )


def check_executor_options(options: argparse.Namespace) -> None:
    """Raise BadInput for invalid numbers, Ray options without --ray, or --workers and --ray under torchrun."""
    if under_torchrun() and (options.workers is not None or options.ray is not None):
        raise BadInput(
            "under torchrun, all processes work on the same run (--workers, --ray): leave these out, or torchrun"
        )
    for name in ("workers", "cpus_per_run"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            option = name.replace("_", "-")
            raise BadInput(f"{option} is {getattr(options, name)} (--{option}): give at least 1")
    gpus = options.gpus_per_run
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus % 1)):
        raise BadInput(f"gpus-per-run is {gpus} (--gpus-per-run): give 0, a fraction of 1, or a whole number")
    if options.ray is None and (options.cpus_per_run is not None or gpus is not None):
        raise BadInput("CPUs and GPUs per run only apply to Ray (--cpus-per-run, --gpus-per-run): give --ray as well")


def executor(options: argparse.Namespace, out: Path) -> Executor:
    """Return the executor for runs whose folders go to `out`; raises BadInput if Ray is requested but not installed."""
    from resfit.executors.local import make_executor

    if options.ray is not None:
        return on_ray(options, out)
    return make_executor(_run_options(options, out), workers=options.workers, device=options.device)


def on_ray(options: argparse.Namespace, out: Path) -> OnRay:
    """Return the Ray executor that the options describe."""
    from resfit.executors.cluster import OnRay

    return OnRay(
        _run_options(options, out),
        options.ray,
        cpus=options.cpus_per_run,
        gpus=options.gpus_per_run,
        device=options.device,
        workers=options.workers,
    )


def _run_options(options: argparse.Namespace, out: Path) -> RunOptions:
    from resfit.executors.local import RunOptions

    return RunOptions(out=out, data_dir=options.data_dir, offline=options.offline, init=getattr(options, "init", None))
