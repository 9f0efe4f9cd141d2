"""Rewrite losses.json after a change that is meant to change training: python tests/golden/regenerate_losses.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers.golden import LOSSES, twenty_losses
from helpers.tiny_recipe import TINY
from resfit.recipe import Recipe

if __name__ == "__main__":
    LOSSES.write_text(json.dumps(twenty_losses(Recipe.from_dict(TINY)), indent=1) + "\n")
