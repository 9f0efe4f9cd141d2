"""`resfit predict`: classify image files with a trained network."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from resfit.cli.common import print_table

if TYPE_CHECKING:
    from resfit.predict import Predictions


def add(commands: Any) -> None:
    """Add the `predict` command."""
    parser = commands.add_parser(
        "predict",
        help="classify images with a trained network",
        description="Classify images with a trained network and print the probabilities. The exit status is 1 if an "
        "image could not be read; the other images are still classified.",
    )
    parser.add_argument("target", metavar="TARGET", help="a run folder or a model.safetensors")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders that contain images")
    parser.add_argument(
        "--top", type=int, default=3, metavar="K", help="number of classes to print per image (default: 3)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object")
    form.add_argument("--csv", action="store_true", help="print CSV: image, rank, class, probability")
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from resfit.predict import predict

    found = predict(options.target, options.images, top=options.top, device=options.device)
    if options.json:
        _print_json(found)
    elif options.csv:
        _print_csv(found)
    elif found.images:
        _print_table(found)
    for image in found.unreadable:
        print(f"unreadable: {image.image}: {image.reason}", file=sys.stderr)
    return 1 if found.unreadable else 0


def _print_json(found: Predictions) -> None:
    from resfit.fields import to_plain

    print(json.dumps({"calibrated": found.temperature is not None, **to_plain(found)}, indent=1))


def _print_csv(found: Predictions) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for prediction in found.images:
        for rank, best in enumerate(prediction.classes, 1):
            writer.writerow([prediction.image, rank, best.name, f"{best.probability:.6f}"])
    print(_calibration(found), file=sys.stderr)


def _print_table(found: Predictions) -> None:
    names = ["class", *("or" for _ in found.images[0].classes[1:])]
    rows = [[p.image, *(f"{best.name}  {100 * best.probability:.2f} %" for best in p.classes)] for p in found.images]
    print_table(["image", *names], rows)
    print(_calibration(found))


def _calibration(found: Predictions) -> str:
    if found.temperature is None:
        return "probabilities are uncalibrated: there was no validation split to fit a temperature"
    return f"probabilities are calibrated: temperature {found.temperature:.3f}, fitted on the validation split"
