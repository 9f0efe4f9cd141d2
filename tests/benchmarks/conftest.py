"""Makes the benchmarks' modules importable, as running one of them does."""

from __future__ import annotations

import sys

from helpers.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
