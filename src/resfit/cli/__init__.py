"""The `resfit` command: a thin layer over the Python API, with one module per subcommand.

No other package imports it; torch is imported only by commands that train or score.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from resfit.cli import (
    card,
    compare,
    completion,
    demo,
    design,
    evaluate,
    export,
    predict,
    prune,
    recipes,
    report,
    show,
    study,
    train,
    tune,
)
from resfit.errors import BadInput, ResfitError, unusable
from resfit.fields import nearest, parse_yaml
from resfit.interrupt import Interrupted, interrupt_behind
from resfit.processes import under_torchrun

# Each module's `add` adds the command's parser; the parser's default `run` does the work and returns the exit status.
_COMMANDS = (
    recipes,
    show,
    design,
    train,
    evaluate,
    compare,
    report,
    study,
    tune,
    prune,
    predict,
    export,
    card,
    demo,
    completion,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0; 1 for a failed run; 2 for bad input; 130 or 143 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid UTF-8
    try:
        with _beside_others():
            status = _run([word for word in arguments if word != "--debug"])
            sys.stdout.flush()  # what cannot be written is to be known here, not when Python ends
            return status
    except ResfitError as error:
        if debug:
            raise
        _complain(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        _drop_output()
        return 0
    except Interrupted as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            raise
        if interrupt_behind(error):
            resume = "run the same command again, or continue an unfinished run with resfit train --resume RUN"
            advice = f": {resume}" if "train" in arguments[:1] else ""
            _complain(f"interrupted{advice}")
            return 130
        if isinstance(error, OSError) and error.filename is not None:
            refused = unusable(error)
            _complain(f"error: {refused}")
            return refused.exit_code
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
            _complain("error: the output cannot be written, its disk is full (stdout): free some space")
            return 1
        reason = (str(error).splitlines() or [""])[0]
        _complain(f"error: {type(error).__name__}: {reason} (in resfit): run again with --debug and report it")
        return 1


def _drop_output() -> None:
    """Let Python end without writing what stdout still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    words, overrides = _take_overrides(arguments)
    options = make_parser().parse_args(words)
    if overrides and not options.takes_fields:
        raise BadInput(f"this command takes no recipe fields (--{next(iter(overrides))}): leave it out")
    if under_torchrun() and options.command != "train":
        raise BadInput(f"torchrun only works with resfit train (resfit {options.command}): start it without torchrun")
    if getattr(options, "offline", False):
        os.environ["RESFIT_OFFLINE"] = "1"
    options.overrides = overrides
    status: int = options.run(options)
    return status


@contextlib.contextmanager
def _beside_others() -> Iterator[None]:
    """Under torchrun, join the process group and let only the first process print."""
    if not under_torchrun():
        yield
        return
    from resfit.distributed import is_main, joined

    with joined(), contextlib.redirect_stdout(sys.stdout if is_main() else io.StringIO()):
        yield


def _complain(line: str) -> None:
    """Print an error to stderr; under torchrun only the first process to fail does, as it makes the others fail."""
    if under_torchrun():
        from resfit.distributed import is_first_to_fail

        if not is_first_to_fail():
            return
    print(line, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """argparse's parser with one-line errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and report unknown arguments here, where this command's own options can be suggested."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, n=1, cutoff=0.75)
            fields = "recipe fields are given as --section.field; " if self.get_default("takes_fields") else ""
            hint = f"did you mean {near[0]}?" if near else f"{fields}see {self.prog} --help"
            raise BadInput(f"unknown {'option' if unknown[0].startswith('-') else 'argument'} ({unknown[0]}): {hint}")
        return options, unknown

    def error(self, message: str) -> Any:
        """Raise BadInput, with the nearest valid choice if a choice is invalid."""
        if wrong := re.search(r"argument (.+?): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            hint = nearest(wrong[2], wrong[3].replace("'", "").split(", "))
            what = "unknown command" if wrong[1] == "COMMAND" else f"invalid value for {wrong[1]}"
            raise BadInput(f"{what} ({wrong[2]}): {hint}")
        raise BadInput(f"{message} ({self.prog}): see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="resfit",
        description="Fit residual networks to a parameter budget and train them.",
        epilog="To get started: resfit train digits. Every command accepts --debug, which shows the traceback of "
        "an error. Environment variables: RESFIT_DATA_DIR (folder with the data), XDG_CACHE_HOME (folder "
        "for caches), RESFIT_OFFLINE=1 (never access the network), CXX (C++ compiler for the CPU kernels), "
        "RESFIT_KERNELS=0 (do not use these kernels).",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=_no_command, command=None, takes_fields=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _no_command(options: argparse.Namespace) -> int:
    if options.version:
        from resfit.version import __version__

        print(f"resfit {__version__}")
        return 0
    make_parser().print_help()
    return 2


def _take_overrides(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Split `--section.field VALUE` options from the other arguments; return those and {"section.field": value}."""
    left: list[str] = []
    overrides: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        if not name.startswith("--") or "." not in name:
            left.append(word)
            continue
        value = text if equals else next(rest, None)
        if value is None or (not equals and value.startswith("--")):
            raise BadInput(f"no value ({name}): give one")
        try:
            overrides[name.removeprefix("--").replace("-", "_")] = parse_yaml(value, name)
        except BadInput:
            raise BadInput(
                f"{value[:60]!r} is not a valid value ({name}): give a number, a word or a YAML list"
            ) from None
    return left, overrides
