"""A network at another size: the member of its shape that fills a budget, all widths scaled alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.spec import NetSpec

FULL = 0.98  # of a budget: less is not filled
_MULTIPLES = (8, 4, 2, 1)
_NEAR = 0.2  # doublings a width: the departure from proportions that finer widths don't mend
_SCALES = [2 ** (n / 16) for n in range(-8, 5)]  # about the one that fills the budget
_STEPPED = 5  # widths of which more than the nearest multiple is tried: the largest, which price most
_PRICED = 60  # candidates of a multiple, at the most
_OFF = 0.1  # of a price: what an estimate may miss it by

Widths = tuple[int, ...]  # all that can be scaled, each different one once, rising
Found = tuple[float, float, int, NetSpec]  # what is left over where that is much, departure, -parameters


def fitted_spec(spec: NetSpec, budget: int) -> NetSpec | None:
    """The network of `spec`'s shape that fills `budget` parameters: all its widths scaled alike, and never over.

    Of widths in multiples of 8 that leave at most 2 % of the budget over, those nearest to the spec's proportions.
    Finer ones are taken only where these are none, or far from the proportions; and the fullest where none leaves so
    little. Equal widths stay equal, and groups and a whitening stem's filters as many as they are. None where nothing
    near these proportions is small enough.
    """
    if FULL * budget <= cost(spec).params <= budget:
        return spec
    estimate = _Estimate(spec, budget)
    found: list[Found] = []
    for multiple in dict.fromkeys((*(math.lcm(step, spec.groups) for step in _MULTIPLES), *_MULTIPLES)):
        found += _best(spec, budget, estimate, multiple)
        if found and min(found, key=_rank)[:2] < (0.0, _NEAR * len(estimate.own)):
            break
    return min(found, key=_rank)[-1] if found else None


def _rank(found: Found) -> tuple[float, float, int]:
    return found[:3]


def departure(spec: NetSpec, other: NetSpec) -> float:
    """How far the widths of `other` are from the proportions of `spec`'s; 0 where all are scaled alike.

    In doublings, added up over the widths of `spec` that differ.
    """
    pairs = dict.fromkeys(zip(_widths(spec), _widths(other), strict=True))
    return _departure([old for old, _ in pairs], [new for _, new in pairs])


def _departure(old: Sequence[int], new: Sequence[int]) -> float:
    doublings = [math.log2(b / a) for a, b in zip(old, new, strict=True)]
    mean = sum(doublings) / len(doublings)
    return sum(abs(each - mean) for each in doublings)


def _widths(spec: NetSpec) -> list[int]:
    """All that can be scaled, in the order of the spec."""
    inner = [width for stage in spec.stages for width in (stage.channels, stage.inner) if width]
    stem = [] if spec.stem.kind == "whiten" else [spec.stem.channels]
    return [*stem, *inner, *([spec.widen.channels] if spec.widen else [])]


class _Estimate:
    """Prices near a budget without pricing: the logarithm of a price is about linear in those of the widths."""

    def __init__(self, spec: NetSpec, budget: int) -> None:
        self.spec, self.own = spec, tuple(sorted(set(_widths(spec))))
        self.scale, self.at, self.params = 1.0, self.own, cost(spec).params
        for _ in range(8):  # a price grows about as widths squared
            self.scale *= (budget / self.params) ** 0.5
            at = self._valid(self.scale)
            if at is None:
                break
            self.at, self.params = at, self._price(at) or self.params
        self.slopes = [self._slope(place) for place in range(len(self.own))]

    def __call__(self, widths: Widths) -> float:
        """The logarithm of the price of the network with these widths."""
        logs = (slope * math.log(b / a) for slope, a, b in zip(self.slopes, self.at, widths, strict=True))
        return math.log(self.params) + sum(logs)

    def _valid(self, scale: float) -> Widths | None:
        """The widths at `scale`, or at one nearby where these make no network."""
        nudges = (1.0, 1.03, 0.97, 1.1, 0.9, 1.3, 0.75, 1.7)
        for multiple, nudge in product(dict.fromkeys((self.spec.groups, 4, 8)), nudges):
            widths = _at(self.own, nudge * scale, multiple)
            if self._price(widths) is not None:
                return widths
        return None

    def _slope(self, place: int) -> float:
        wider = tuple(width + (i == place) * max(1, width // 4) for i, width in enumerate(self.at))
        price = self._price(wider)
        return math.log(price / self.params) / math.log(wider[place] / self.at[place]) if price else 0.5

    def _price(self, widths: Widths) -> int | None:
        found = _with_widths(self.spec, self.own, widths)
        return cost(found).params if found else None


def _best(spec: NetSpec, budget: int, estimate: _Estimate, multiple: int) -> Iterator[Found]:
    """Of the candidates the one that fills the budget nearest to proportions; where none does, all within it."""

    def order(widths: Widths) -> tuple[bool, float, float]:
        off = abs(estimate(widths) - math.log(budget))
        return off > _OFF, off if off > _OFF else round(_departure(estimate.own, widths), 6), off

    for widths in sorted(_candidates(estimate, multiple), key=order)[:_PRICED]:
        found = _with_widths(spec, estimate.own, widths)
        if found and (params := cost(found).params) <= budget:
            lack = max(0.0, FULL - params / budget)
            yield lack, departure(spec, found), -params, found
            if not lack:
                return


def _candidates(estimate: _Estimate, multiple: int) -> set[Widths]:
    """The multiples nearest to the widths at several scales, or a step off; in the order that the widths have."""
    own = estimate.own
    stepped = min(_STEPPED, len(own))
    found = set()
    for scale in _SCALES:
        near = _at(own, scale * estimate.scale, multiple)
        for offs in product((-multiple, 0, multiple), repeat=stepped):
            offs = (0,) * (len(own) - stepped) + offs
            widths = tuple(width + off for width, off in zip(near, offs, strict=True))
            if widths[0] > 0 and widths == tuple(sorted(widths)):
                found.add(widths)
    return found


def _at(widths: Widths, scale: float, multiple: int) -> Widths:
    return tuple(multiple * max(1, round(scale * width / multiple)) for width in widths)


def _with_widths(spec: NetSpec, own: Widths, widths: Widths) -> NetSpec | None:
    """`spec` with `widths` for its `own`, None where that makes no valid network (pad shortcuts cannot narrow)."""
    new = dict(zip(own, widths, strict=True))
    try:
        stages = tuple(
            replace(stage, channels=new[stage.channels], inner=new[stage.inner] if stage.inner else None)
            for stage in spec.stages
        )
        stem = spec.stem if spec.stem.kind == "whiten" else replace(spec.stem, channels=new[spec.stem.channels])
        widen = spec.widen and replace(spec.widen, channels=new[spec.widen.channels])
        return replace(spec, stages=stages, stem=stem, widen=widen)
    except BadInput:
        return None
