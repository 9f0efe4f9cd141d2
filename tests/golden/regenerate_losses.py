"""Rewrite losses.json after a change that is meant to change training: python tests/golden/regenerate_losses.py."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from test_train import LOSSES, twenty_losses  # noqa: E402
from tiny_recipe import TINY  # noqa: E402

from resfit.recipe import Recipe  # noqa: E402

if __name__ == "__main__":
    LOSSES.write_text(json.dumps(twenty_losses(Recipe.from_dict(TINY)), indent=1) + "\n")
