"""`resfit completion`: print a shell completion script."""

from __future__ import annotations

import argparse
from typing import Any

_SHELLS = ("bash", "zsh", "fish")
_FILES = ("TARGET", "RUN", "IMAGE", "FILE")  # metavars of arguments that may be a file or a folder
_FOLDERS = ("D", "DIR", "FOLDER")


def add(commands: Any) -> None:
    """Add the `completion` command."""
    parser = commands.add_parser(
        "completion",
        help="print a shell completion script",
        description="Print a completion script. bash: resfit completion bash > "
        "~/.local/share/bash-completion/completions/resfit; zsh: write it to a file named _resfit in a folder "
        "of $fpath; fish: write it to ~/.config/fish/completions/resfit.fish.",
    )
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help="bash, zsh or fish")
    parser.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from resfit.cli import make_parser

    parser = make_parser()
    _name_arguments(parser)
    print(shtab.complete(parser, options.shell))
    return 0


def _name_arguments(parser: argparse.ArgumentParser) -> None:
    """Mark the arguments of all commands that take recipes, files or folders."""
    import shtab

    from resfit.recipe import recipe_names

    for action in parser._actions:  # argparse has no public access to these
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _name_arguments(command)
        elif action.metavar == "RECIPE":
            action.choices = recipe_names()
        elif action.metavar in _FILES or action.metavar in _FOLDERS:
            action.complete = shtab.FILE if action.metavar in _FILES else shtab.DIRECTORY  # type: ignore[attr-defined]
