"""`resfit export`: write a trained network in a deployment format."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.cli.common import DATA_SET, add_data_options, print_table
from resfit.interrupt import Interruptible

if TYPE_CHECKING:
    from resfit.record import ExportRecord

_FORMATS = ("onnx", "torch", "int8", "safetensors", "safetensors-fp32")


def add(commands: Any) -> None:
    """Add the `export` command."""
    parser = commands.add_parser(
        "export",
        help="write a trained network as ONNX, a PyTorch program, int8 or plain weights",
        description="Write a trained network in another format and compare its predictions with those of the network "
        "on the test images of its data. A file that disagrees is deleted. The results are added to "
        "export.json next to the file.",
    )
    parser.add_argument("target", metavar="TARGET", help="a run folder or a model.safetensors")
    parser.add_argument(
        "--format",
        required=True,
        choices=_FORMATS,
        help="onnx; torch (a torch.export program); int8 (ONNX, quantized with training images); safetensors "
        "(bf16 weights for publishing); safetensors-fp32 (fp32 weights)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="output file (default: the model's name with another extension)"
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="input of the graph: uint8 from 0 to 255 (default), or float from 0 to 1; the graph does the "
        "normalization",
    )
    parser.add_argument("--data", metavar="NAME", help=DATA_SET)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_data_options(parser)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from resfit.export import export
    from resfit.fields import to_plain

    with Interruptible("nothing was written"):  # SIGTERM, too, has to end it by an exception: a draft is to be deleted
        record = export(
            options.target,
            format=options.format,
            out=options.out,
            input=options.input,
            data=options.data,
            data_dir=options.data_dir,
            offline=options.offline,
            progress=lambda line: print(line, file=sys.stderr),
        )
    if options.json:
        print(json.dumps(to_plain(record), indent=1))
    else:
        _print_record(record)
    return 0


def _print_record(record: ExportRecord) -> None:
    print_table(
        ["export", record.file],
        [
            ["size", f"{record.bytes:,} bytes; the model has {record.bytes_before:,}"],
            ["accuracy", f"{record.accuracy_after:.2%}; the network has {record.accuracy_before:.2%}"],
            ["norms folded", record.norms_folded],
        ],
    )
    print_table(
        ["batch", "images", "equal predictions", "largest difference of logits"],
        [[a.batch_size, f"{a.images:,}", f"{a.equal:.2%}", f"{a.largest_difference:.3g}"] for a in record.agreement],
        right=(0, 1, 2, 3),
    )
    print_table(
        ["one thread", "batch", "calls", "median, ms", "99th percentile, ms"],
        [[t.runtime, t.batch_size, t.calls, f"{t.median_ms:.3f}", f"{t.p99_ms:.3f}"] for t in record.latency],
        right=(1, 2, 3, 4),
    )
