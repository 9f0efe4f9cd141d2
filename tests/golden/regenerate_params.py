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


def _resnext(groups: int, width: int) -> dict[str, Any]:
    """Xie et al. 2017, section 5.3: 29 layers, `groups` x `width` channels inside, 256 outside."""
    return {
        "stages": _stages((3, 3, 3), groups * width),
        "block": "bottleneck",
        "groups": groups,
        "expansion": 256 / (groups * width),
    }


def _shake(width: int) -> dict[str, Any]:
    """Gastaldi 2017, 26 layers, two branches."""
    return {
        "stem": {"channels": 16},
        "stages": _stages((4, 4, 4), width),
        "block": "act-first",
        "branches": 2,
        "shortcut": {"kind": "shift"},
    }


def _pyramid(blocks: int, alpha: int, block: str) -> dict[str, Any]:
    """Han et al. 2017."""
    return {
        "stem": {"channels": 16},
        "stages": [{"blocks": blocks, "channels": 16}] * 3,
        "widen": {"channels": alpha},
        "block": block,
        "shortcut": {"kind": "avg-pad"},
    }


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
    "resnext-29-32x4d": _resnext(32, 4),
    "resnext-29-8x64d": _resnext(8, 64),
    "resnext-29-16x64d": _resnext(16, 64),
    "shake-26-2x32d": _shake(32),
    "shake-26-2x96d": _shake(96),
    "pyramid-110-48": _pyramid(18, 48, "pyramid"),
    "pyramid-110-84": _pyramid(18, 84, "pyramid"),
    "pyramid-110-270": _pyramid(18, 270, "pyramid"),
    "pyramid-164-270": _pyramid(18, 270, "pyramid-bottleneck"),
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
