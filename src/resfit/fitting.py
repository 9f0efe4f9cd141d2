"""Scale a network to a parameter budget: find widths of the same proportions that fill the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.spec import NetSpec

FULL = 0.98  # minimum share of a budget for it to count as filled
_MULTIPLES = (8, 4, 2, 1)
_NEAR = 0.2  # doublings per width: below this departure from the proportions, no finer multiple is tried
_SCALES = [2 ** (n / 16) for n in range(-8, 5)]  # relative to the scale that fills the budget
_STEPPED = 5  # the largest widths, which matter most: their neighbouring multiples are tried too
_PRICED = 60  # maximum number of candidates per multiple
_OFF = 0.1  # tolerated error of an estimated parameter count, in natural log units

Widths = tuple[int, ...]  # the distinct widths that can be scaled, ascending
Found = tuple[float, float, int, NetSpec]  # shortfall below FULL, departure, -parameters, spec


def fitted_spec(spec: NetSpec, budget: int) -> NetSpec | None:
    """Scale all widths of `spec` alike so that the network fills `budget` parameters without exceeding it.

    Among widths in multiples of 8 that use at least 98 % of the budget, choose those nearest to the spec's proportions.
    Finer multiples are tried only if there are none, or only ones far from the proportions. If nothing uses 98 %,
    choose the fullest. Equal widths stay equal; the numbers of groups and of a whitening stem's filters do not change.
    Return None if no network near these proportions is small enough.
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
    """Return how far the widths of `other` depart from the proportions of `spec`; 0 if all are scaled alike.

    The unit is doublings (log2), summed over the distinct pairs of old and new width.
    """
    pairs = dict.fromkeys(zip(_widths(spec), _widths(other), strict=True))
    return _departure([old for old, _ in pairs], [new for _, new in pairs])


def _departure(old: Sequence[int], new: Sequence[int]) -> float:
    doublings = [math.log2(b / a) for a, b in zip(old, new, strict=True)]
    mean = sum(doublings) / len(doublings)
    return sum(abs(each - mean) for each in doublings)


def _widths(spec: NetSpec) -> list[int]:
    """Return all widths that can be scaled, in the order of the spec."""
    inner = [width for stage in spec.stages for width in (stage.channels, stage.inner) if width]
    stem = [] if spec.stem.kind == "whiten" else [spec.stem.channels]
    return [*stem, *inner, *([spec.widen.channels] if spec.widen else [])]


class _Estimate:
    """Estimate parameter counts near a budget: the log of the count is about linear in the logs of the widths."""

    def __init__(self, spec: NetSpec, budget: int) -> None:
        self.spec, self.own = spec, tuple(sorted(set(_widths(spec))))
        self.scale, self.at, self.params = 1.0, self.own, cost(spec).params
        for _ in range(8):  # the parameter count grows about with the square of the widths
            self.scale *= (budget / self.params) ** 0.5
            at = self._valid(self.scale)
            if at is None:
                break
            self.at, self.params = at, self._price(at) or self.params
        self.slopes = [self._slope(place) for place in range(len(self.own))]

    def __call__(self, widths: Widths) -> float:
        """Return the estimated log of the parameter count with these widths."""
        logs = (slope * math.log(b / a) for slope, a, b in zip(self.slopes, self.at, widths, strict=True))
        return math.log(self.params) + sum(logs)

    def _valid(self, scale: float) -> Widths | None:
        """Return the widths at `scale`, or at a nearby scale if they make no valid network."""
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
    """Yield the candidates within the budget, nearest to the proportions first, up to the first that fills it."""

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
    """Return widths, still ascending, rounded to a multiple or one multiple off, at several scales."""
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
    """Replace the widths `own` of `spec` by `widths`; None if that is invalid (pad shortcuts cannot narrow)."""
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
