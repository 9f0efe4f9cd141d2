"""Choose the widths of a pruned network: meet the parameter budget while losing the least importance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.prune.channels import EXPANSION, Wiring, wiring
from resfit.spec import NetSpec

_LEAST_SHARE = 0.125  # of a part's width: below it, single layers become bottlenecks (Tanaka et al. 2020)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Channel sets that share one width: a residual stream, or the inner channels of a stage.

    `widths` are the widths that it may take, descending from its own; `losses` the importance lost at each.
    """

    name: str
    widths: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Move:
    """A candidate step: a part at another of its widths, and the resulting network."""

    part: Part
    at: int
    spec: NetSpec
    params: int


def fit_widths(spec: NetSpec, worth: Mapping[str, Tensor], budget: int) -> NetSpec:
    """Narrow `spec` to at most `budget` parameters; widths are multiples of 8, above 128 of 16.

    Greedy: each step narrows the part that loses the least importance per parameter saved; afterwards parts are widened
    again as far as the budget allows. Raises BadInput if even the narrowest network is too large.
    """
    wired = wiring(spec)
    parts, at = _parts(spec, wired, worth), dict[str, int]()
    now, params = spec, cost(spec).params
    while params > budget:
        moves = [move for part in parts if (move := _moved(spec, wired, parts, at, part, 1))]
        if not moves:
            raise BadInput(f"pruning cannot go below {params:,} parameters (--budget): give at least that")
        best = min(moves, key=lambda move: _lost(move, at) / max(params - move.params, 1))
        at[best.part.name], now, params = best.at, best.spec, best.params
    while True:
        back = [move for part in parts if (move := _moved(spec, wired, parts, at, part, -1)) and move.params <= budget]
        if not back:
            return now
        best = max(back, key=lambda move: -_lost(move, at))
        at[best.part.name], now = best.at, best.spec


def _lost(move: _Move, at: Mapping[str, int]) -> float:
    return move.part.losses[move.at] - move.part.losses[at.get(move.part.name, 0)]


def _moved(
    spec: NetSpec, wired: Wiring, parts: list[Part], at: Mapping[str, int], part: Part, step: int
) -> _Move | None:
    """Return the nearest narrower (1) or wider (-1) width of `part` at which every block keeps its kind of shortcut."""
    place = at.get(part.name, 0) + step
    while 0 <= place < len(part.widths):
        widths = {p.name: p.widths[place if p is part else at.get(p.name, 0)] for p in parts}
        found = _with_widths(spec, wired, widths)
        if found is not None:
            return _Move(part=part, at=place, spec=found, params=cost(found).params)
        place += step
    return None


def _with_widths(spec: NetSpec, wired: Wiring, widths: Mapping[str, int]) -> NetSpec | None:
    stages = []
    for i, (stage, stream) in enumerate(zip(spec.stages, wired.streams[1:], strict=True)):
        channels, inner = stage.channels, widths.get(f"stages.{i}.inner")
        if stream in widths:
            channels = widths[stream] // EXPANSION[stage.block or spec.block]
        stages.append(replace(stage, channels=channels, inner=None if inner == channels else inner))
    stem = replace(spec.stem, channels=widths.get("stem", spec.stem.channels))
    try:
        found = replace(spec, stem=stem, stages=tuple(stages))
    except BadInput:  # a pad shortcut cannot lead to fewer channels
        return None
    return found if _shortcuts(found) == _shortcuts(spec) else None


def _shortcuts(spec: NetSpec) -> list[tuple[bool, bool]]:
    return [(not block.projections, block.shape_changes) for _, _, block in spec.plan()]


def _parts(spec: NetSpec, wired: Wiring, worth: Mapping[str, Tensor]) -> list[Part]:
    """Return the streams that may be narrowed (not a whitening stem's), and every stage's inner channels."""
    kinds = [stage.block or spec.block for stage in spec.stages]
    unit: dict[str, int] = {}
    for stream, expansion in zip(wired.streams, [1, *(EXPANSION[kind] for kind in kinds)], strict=True):
        unit[stream] = max(unit.get(stream, 1), expansion)
    if spec.stem.kind == "whiten":
        del unit["stem"]
    streams = [_part(stream, (stream,), worth, size) for stream, size in unit.items()]
    return streams + [_part(f"stages.{i}.inner", sets, worth, 1) for i, sets in enumerate(wired.inner) if sets]


def _part(name: str, sets: tuple[str, ...], worth: Mapping[str, Tensor], unit: int) -> Part:
    widths = tuple(_narrower(len(worth[sets[0]]), unit))
    falling = [worth[each].sort().values.double().cumsum(0) for each in sets]
    dropped = [widths[0] - width for width in widths]
    losses = tuple(sum(float(total[count - 1]) if count else 0.0 for total in falling) for count in dropped)
    return Part(name=name, widths=widths, losses=losses)


def _narrower(width: int, unit: int) -> list[int]:
    """Return the width itself and the smaller efficient ones, in units of `unit` channels."""
    sizes = [size * unit for size in (*range(8, 128, 8), *range(128, width // unit + 1, 16))]
    return [width, *(size for size in reversed(sizes) if max(8 * unit, _LEAST_SHARE * width) <= size < width)]
