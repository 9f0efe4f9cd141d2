"""Write params.json anew: python tests/golden/regenerate_params.py (then read the difference before committing it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resfit.cost import cost
from resfit.recipe import get_recipe
from resfit.spec import NetSpec

RECIPES = ("seed000", "seed001a", "seed001b", "seed001c", "seed001d", "seed003", "seed004")


def _stages(blocks: tuple[int, ...], first: int) -> list[dict[str, int]]:
    return [{"blocks": count, "channels": first * 2**i} for i, count in enumerate(blocks)]


def _he(blocks: int) -> dict[str, Any]:
    """He et al. 2015, section 4.2, shortcuts of option A."""
    return {"stem": {"channels": 16}, "stages": _stages((blocks,) * 3, 16), "shortcut": {"kind": "pad"}}


def _imagenet_shape(blocks: tuple[int, ...], block: str) -> dict[str, Any]:
    """He et al. 2015, table 1, with a 3x3 stem for 32x32 images."""
    return {"stages": _stages(blocks, 64), "block": block}


def _wide(depth: int, width: int) -> dict[str, Any]:
    """Zagoruyko & Komodakis 2016."""
    return {"stem": {"channels": 16}, "stages": _stages(((depth - 4) // 6,) * 3, 16 * width), "block": "preact"}


NETWORKS = {
    "resnet20": _he(3),
    "resnet32": _he(5),
    "resnet44": _he(7),
    "resnet56": _he(9),
    "resnet110": _he(18),
    "resnet18": _imagenet_shape((2, 2, 2, 2), "basic"),
    "resnet34": _imagenet_shape((3, 4, 6, 3), "basic"),
    "resnet50": _imagenet_shape((3, 4, 6, 3), "bottleneck"),
    "wrn-16-4": _wide(16, 4),
    "wrn-28-10": _wide(28, 10),
    "wrn-40-2": _wide(40, 2),
    # He et al. 2016b
    "preact-resnet164": {
        "stem": {"channels": 16},
        "stages": _stages((18, 18, 18), 16),
        "block": "preact-bottleneck",
    },
}


def main() -> None:
    """Price everything and write the file."""
    golden = {
        "recipes": {name: cost(get_recipe(name).spec).params for name in RECIPES},
        "networks": {
            name: {"params": cost(NetSpec.from_dict(spec)).params, "spec": spec} for name, spec in NETWORKS.items()
        },
    }
    Path(__file__).with_name("params.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
