"""`resfit demo`: serve a local web page that classifies images with a trained network."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from resfit.errors import BadInput
from resfit.interrupt import Interruptible


def add(commands: Any) -> None:
    """Add the `demo` command."""
    parser = commands.add_parser(
        "demo",
        help="serve a local web page that classifies images",
        description="Serve a web page on this machine: drop in an image to see the network's prediction and "
        "the regions it is based on. Nothing leaves the machine. Needs resfit[demo].",
    )
    parser.add_argument("target", metavar="TARGET", help="a run folder or a model.safetensors")
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of the page (default: the first free one from 7860 up)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="D", help="folder of the data set whose test images are offered"
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    if options.port is not None and not 1 <= options.port <= 65535:
        raise BadInput(f"port is {options.port} (--port): give a number from 1 to 65535")
    from resfit.demo import serve

    def ready(address: str) -> None:
        print(f"{options.target}: {address} (stop with Ctrl+C)", flush=True)

    with Interruptible("the page is closed"):  # also by SIGTERM: dropped images are to be deleted
        tell = partial(print, file=sys.stderr, flush=True)
        serve(options.target, host=options.host, port=options.port, data_dir=options.data_dir, ready=ready, tell=tell)
    return 0
