"""The limit on trainable parameters: whether a spec fits, and the nearest one that does."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.fields import differences
from resfit.spec import NetSpec


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
    """A budget; raises BadInput for one that holds no parameter."""
    if budget < 1:
        raise BadInput(f"budget is {budget} (budget): give a number of trainable parameters")
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
    """The widest network of `spec`'s shape within `budget`: all channels scaled alike, in multiples of 8 if that fits.

    Groups stay as many, so that channels are multiples of them too.

    `spec` itself where it fits; None where even one channel everywhere is too much.
    """
    if cost(spec).params <= budget:
        return spec
    for multiple in (math.lcm(8, spec.groups), spec.groups):
        tried = spec
        for step in range(_SCALES - 1, -1, -1):
            narrower = _narrowed(spec, step / _SCALES, multiple)
            if narrower is not None and narrower != tried:
                if cost(narrower).params <= budget:
                    return narrower
                tried = narrower
    return None


_SCALES = 200


def _narrowed(spec: NetSpec, scale: float, multiple: int) -> NetSpec | None:
    """`spec` with all channels scaled, None where that makes no valid network (pad shortcuts cannot narrow)."""

    def narrowed(channels: int) -> int:
        return max(int(channels * scale) // multiple * multiple, min(multiple, channels))

    stages = tuple(
        replace(stage, channels=narrowed(stage.channels), inner=narrowed(stage.inner) if stage.inner else None)
        for stage in spec.stages
    )
    stem = spec.stem if spec.stem.kind == "whiten" else replace(spec.stem, channels=narrowed(spec.stem.channels))
    widen = spec.widen and replace(spec.widen, channels=narrowed(spec.widen.channels))
    try:
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
