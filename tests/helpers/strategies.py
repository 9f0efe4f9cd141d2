"""Hypothesis strategies: random valid specs, narrow and small so that building one takes milliseconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from hypothesis import assume
from hypothesis import strategies as st

from resfit.errors import BadInput
from resfit.spec import (
    BlockKind,
    Downsample,
    DropoutSpec,
    ECASpec,
    HeadSpec,
    InputSpec,
    NetSpec,
    NormSpec,
    PoolSpec,
    SESpec,
    ShortcutSpec,
    StageSpec,
    StemSpec,
    WidenSpec,
)

KINDS = st.sampled_from(get_args(BlockKind))
DOWNSAMPLES = st.sampled_from(get_args(Downsample))
SHORTCUTS = st.builds(
    ShortcutSpec, kind=st.sampled_from(("conv", "pad", "avg-pad")), kernel=st.sampled_from((1, 3, 5))
) | st.just(ShortcutSpec(kind="shift"))
RATES = st.sampled_from((0.0, 0.25))
DROPOUTS = st.builds(DropoutSpec, block=RATES, head=RATES, path=RATES) | st.builds(DropoutSpec, shakedrop=RATES)
ATTENTION = (
    st.just({})
    | st.fixed_dictionaries({"se": st.builds(SESpec, reduction=st.sampled_from((1, 2, 16)), bias=st.booleans())})
    | st.fixed_dictionaries({"eca": st.builds(ECASpec, kernel=st.sampled_from((None, 1, 3)))})
)
STAGES = st.builds(
    StageSpec,
    blocks=st.integers(1, 2),
    channels=st.integers(1, 8),
    stride=st.sampled_from((None, 1, 2, 3)),
    kernel=st.sampled_from((1, 3, 5)),
    block=st.none() | KINDS,
    shortcut=st.none() | SHORTCUTS,
    downsample=st.none() | DOWNSAMPLES,
    inner=st.none() | st.integers(1, 8),
)


@st.composite
def stems(draw: st.DrawFn, in_channels: int) -> StemSpec:
    stride = draw(st.integers(1, 2))
    if draw(st.booleans()):
        kernel = draw(st.integers(1, 3))
        channels, pad = 2 * in_channels * kernel**2, draw(st.booleans())
        return StemSpec(kind="whiten", channels=channels, kernel=kernel, stride=stride, pad=pad)
    return StemSpec(channels=draw(st.integers(1, 8)), kernel=draw(st.sampled_from((1, 3, 5))), stride=stride)


@st.composite
def specs(draw: st.DrawFn) -> NetSpec:
    """Any valid spec that is quick to build."""
    images = InputSpec(channels=draw(st.integers(1, 4)), size=draw(st.integers(8, 20)))
    parts: dict[str, Any] = {
        "input": images,
        "stem": draw(stems(images.channels)),
        "stages": tuple(draw(st.lists(STAGES, min_size=1, max_size=3))),
        "block": draw(KINDS),
        "expansion": draw(st.sampled_from((None, None, 1, 2, 0.5))),
        "groups": draw(st.sampled_from((1, 1, 2))),
        "branches": draw(st.sampled_from((1, 2))),
        "mix": draw(st.sampled_from(("shake", "mean"))),
        "widen": draw(st.none() | st.builds(WidenSpec, channels=st.integers(1, 8), multiple=st.sampled_from((1, 2)))),
        "shortcut": draw(SHORTCUTS),
        "downsample": draw(DOWNSAMPLES),
        **draw(ATTENTION),
        "conv_bias": draw(st.booleans()),
        "norm": draw(st.builds(NormSpec, gain=st.booleans())),
        "dropout": draw(DROPOUTS),
        "pool": draw(
            st.builds(PoolSpec, kind=st.sampled_from(("avg", "max")), size=st.sampled_from(("global", 1, 2, 3)))
        ),
        "head": draw(st.builds(HeadSpec, bias=st.booleans(), scale=st.sampled_from((1.0, 0.125)))),
        "activation": draw(st.sampled_from(("relu", "gelu", "silu"))),
        "num_classes": draw(st.integers(2, 12)),
    }
    if draw(st.integers(0, 5)) == 0:  # these are for basic blocks of one branch
        stages = tuple(replace(stage, block=None, shortcut=None) for stage in parts["stages"])
        parts |= {"stages": stages, "block": "basic", "branches": 1, "groups": 1, "shortcut": ShortcutSpec(kind="late")}
    try:
        return NetSpec(**parts)
    except BadInput:  # a window larger than the map, a pad shortcut to fewer channels, groups that do not divide
        assume(False)
        raise


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("inf", "nan", "1e-4", "\n")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def mutations(valid: object) -> st.SearchStrategy[object]:
    """`valid` with something in its depths replaced, dropped or added."""
    return st.composite(_mutated)(valid)  # type: ignore[arg-type, no-any-return]


def _mutated(draw: st.DrawFn, data: object) -> object:
    if isinstance(data, dict) and data and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(data)))
        match draw(st.sampled_from(("within", "within", "within", "drop", "add"))):
            case "within":
                return {**data, key: _mutated(draw, data[key])}
            case "drop":
                return {name: item for name, item in data.items() if name != key}
            case _:
                return {**data, draw(st.text(max_size=8)): draw(PLAIN)}
    if isinstance(data, list) and data and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(data) - 1))
        return [*data[:place], _mutated(draw, data[place]), *data[place + 1 :]]
    return draw(PLAIN)
