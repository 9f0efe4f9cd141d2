"""The limit on trainable parameters: whether a spec fits, and the nearest one that does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.fields import differences
from resfit.spec import NetSpec

FULL = 0.98  # of a budget: less is not filled
_NEAR = 0.2  # doublings a width: the departure from proportions that finer widths don't mend
_STEPPED = 5  # widths of which more than the nearest multiple is tried
_WIDEST, _HALVINGS = 4096.0, 30  # scales


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A price held against a limit, both in trainable parameters."""

    params: int
    budget: int

    @property
    def fits(self) -> bool:
        """Whether the price is within the limit; the limit itself is."""
        return self.params <= self.budget

    def __str__(self) -> str:
        share = self.params / self.budget
        if self.fits:
            return f"{self.params:,} parameters, {share:.1%} of the budget of {self.budget:,}: fits"
        return f"{self.params:,} parameters, {self.params - self.budget:,} over the budget of {self.budget:,}"


def judge(spec: NetSpec, budget: int) -> Verdict:
    """Price `spec` and hold it against `budget`; raises BadInput for a budget below 1."""
    return Verdict(params=cost(spec).params, budget=checked_budget(budget))


def checked_budget(budget: int) -> int:
    """A budget; raises BadInput for what is no whole number, or holds no parameter."""
    if not isinstance(budget, int) or budget < 1:
        raise BadInput(f"budget is {budget!r} (budget): give a number of trainable parameters, such as 5_000_000")
    return budget


def require_fit(spec: NetSpec, budget: int) -> Verdict:
    """The verdict on a spec that fits; raises BadInput with the excess and the nearest spec that fits otherwise."""
    verdict = judge(spec, budget)
    if verdict.fits:
        return verdict
    fitting = nearest_fit(spec, budget)
    if fitting is None:
        raise BadInput(f"{verdict} (spec): no narrower network of this shape fits; use fewer stages or blocks")
    changes = differences({"spec": spec.to_dict()}, {"spec": fitting.to_dict()})
    fields = ", ".join(f"{_dotted(path)} {new}" for path, _, new in changes)
    raise BadInput(f"{verdict} (spec): the nearest that fits has {cost(fitting).params:,} parameters, with {fields}")


def _dotted(path: str) -> str:
    """A path as it is given on the command line: spec.stages.0.channels."""
    return path.replace("[", ".").replace("]", "")


def nearest_fit(spec: NetSpec, budget: int) -> NetSpec | None:
    """`spec` itself where it is within `budget`, and else `filled`: what a refusal offers."""
    return spec if cost(spec).params <= budget else filled(spec, budget)


def filled(spec: NetSpec, budget: int) -> NetSpec | None:
    """The network of `spec`'s shape that fills `budget`: all its widths scaled alike, up or down, and never over.

    Of widths in multiples of 8 that leave at most 2 % of the budget over, those nearest to the spec's proportions.
    Finer ones are taken only where these are none, or far from the proportions; and the fullest where none leaves so
    little. Equal widths stay equal, and groups and a whitening stem's filters as many as they are. None where even one
    channel everywhere is too much.
    """
    scale = _scale(spec, checked_budget(budget))

    def rank(each: NetSpec) -> tuple[float, float, int]:
        params = cost(each).params
        return max(0.0, FULL - params / budget), departure(spec, each), -params

    found: list[NetSpec] = []
    for multiple in dict.fromkeys(math.lcm(step, spec.groups) for step in (8, 4, 2, 1)):
        found += [each for each in _around(spec, scale, multiple) if cost(each).params <= budget]
        if found and rank(min(found, key=rank)) < (0.0, _NEAR * len(set(_widths(spec)))):
            break
    return min(found, key=rank, default=None)


def require_filled(spec: NetSpec, budget: int, name: str) -> NetSpec:
    """`filled`; raises BadInput, with the network's name, where even the narrowest of its shape is over `budget`."""
    found = filled(spec, budget)
    if found is None:
        raise BadInput(f"no network of {name}'s shape has {budget:,} parameters or less (budget): give more")
    return found


def departure(spec: NetSpec, other: NetSpec) -> float:
    """How far the widths of `other` are from the proportions of `spec`'s; 0 where all are scaled alike.

    In doublings, added up over the widths of `spec` that differ.
    """
    pairs = dict.fromkeys(zip(_widths(spec), _widths(other), strict=True))
    doublings = [math.log2(new / old) for old, new in pairs]
    mean = sum(doublings) / len(doublings)
    return sum(abs(each - mean) for each in doublings)


def _widths(spec: NetSpec) -> list[int]:
    """All that can be scaled, in the order of the spec."""
    inner = [width for stage in spec.stages for width in (stage.channels, stage.inner) if width]
    stem = [] if spec.stem.kind == "whiten" else [spec.stem.channels]
    return [*stem, *inner, *([spec.widen.channels] if spec.widen else [])]


def _scale(spec: NetSpec, budget: int) -> float:
    """The factor at which the widths, to the unit, just fill the budget."""
    low, high = 0.0, 1.0
    while high < _WIDEST and _fits(spec, high, budget):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _fits(spec, middle, budget) else (low, middle)
    return max(low, 1 / _WIDEST)


def _fits(spec: NetSpec, scale: float, budget: int) -> bool:
    scaled = _with_widths(spec, {width: _rounded(scale * width, spec.groups) for width in _widths(spec)})
    return scaled is not None and cost(scaled).params <= budget


def _around(spec: NetSpec, scale: float, multiple: int) -> Iterator[NetSpec]:
    """The valid networks whose widths are the multiples nearest to `scale` times the spec's, or one step off."""
    widths = sorted(set(_widths(spec)))
    steps = [(0,)] * (len(widths) - _STEPPED) + [(-1, 0, 1)] * _STEPPED  # of many widths the largest, which price most
    for offs in product(*steps[-len(widths) :]):
        new = [_rounded(scale * w + off * multiple, multiple) for w, off in zip(widths, offs, strict=True)]
        if new == sorted(new) and (found := _with_widths(spec, dict(zip(widths, new, strict=True)))):
            yield found


def _rounded(width: float, multiple: int) -> int:
    return multiple * max(1, round(width / multiple))


def _with_widths(spec: NetSpec, widths: Mapping[int, int]) -> NetSpec | None:
    """`spec` with other widths for its own, None where that makes no valid network (pad shortcuts cannot narrow)."""
    try:
        stages = tuple(
            replace(stage, channels=widths[stage.channels], inner=widths[stage.inner] if stage.inner else None)
            for stage in spec.stages
        )
        stem = spec.stem if spec.stem.kind == "whiten" else replace(spec.stem, channels=widths[spec.stem.channels])
        widen = spec.widen and replace(spec.widen, channels=widths[spec.widen.channels])
        return replace(spec, stages=stages, stem=stem, widen=widen)
    except BadInput:
        return None


def parse_count(text: str, option: str = "--budget") -> int:
    """A number of parameters or MACs as people write it: 5000000, 5_000_000, 500k, 2.5M."""
    number, unit = text.strip().replace("_", ""), 1
    if re.fullmatch(r"\d{1,3}(,\d{3})+[kKmM]?", number):  # 2,5M may mean 2.5M or 25M
        number = number.replace(",", "")
    if number[-1:].lower() in ("k", "m"):
        number, unit = number[:-1], {"k": 1_000, "m": 1_000_000}[number[-1].lower()]
    try:
        count = round(float(number) * unit)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise BadInput(f"{text!r} is not a count ({option}): give one such as 500k or 5M")
    return count


def short_count(count: int) -> str:
    """The shortest text that `parse_count` reads as `count`: 500k, 2.5M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size and parse_count(text := f"{count / size:g}{unit}") == count:
            return text
    return str(count)
