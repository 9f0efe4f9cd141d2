"""Rewrite corruptions.json, once resfit.corruptions.SET counts up: python tests/golden/regenerate_corruptions.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers.golden import VALUES, values

if __name__ == "__main__":
    VALUES.write_text(json.dumps(values(), indent=1) + "\n")
