"""What a record says about where and how its run was made."""

from __future__ import annotations

import sys

import pytest
import torch

from resfit.environment import environment


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/home/me/bin/resfit", "train", "a recipe.yaml"], "resfit train 'a recipe.yaml'"),
        (["/home/me/lib/resfit/__main__.py", "train", "digits"], "python -m resfit train digits"),
    ],
)
def test_the_command_is_one_that_can_be_typed_again(monkeypatch, arguments, command):
    monkeypatch.setattr(sys, "argv", arguments)
    assert environment(torch.device("cpu"))["command"] == command
