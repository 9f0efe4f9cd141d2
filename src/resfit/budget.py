"""The limit on trainable parameters: whether a spec fits, and the nearest one that does."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.fields import differences
from resfit.fitting import fitted_spec
from resfit.spec import NetSpec

_MOST = 10_000_000_000  # parameters: the widths of a larger network have no end


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
    try:
        count = 0 if isinstance(budget, bool) else operator.index(budget)
    except TypeError:
        count = 0
    if not 1 <= count <= _MOST:
        raise BadInput(
            f"budget is {budget!r} (budget): give a number of trainable parameters, such as 5_000_000, up to {_MOST:,}"
        )
    return count


def require_fit(spec: NetSpec, budget: int) -> Verdict:
    """The verdict on a spec that fits; raises BadInput with the excess and the nearest spec that fits otherwise."""
    verdict = judge(spec, budget)
    if verdict.fits:
        return verdict
    fitting = fitted_spec(spec, budget)
    if fitting is None:
        raise BadInput(f"{verdict} (spec): no narrower network of its proportions fits; use fewer stages or blocks")
    changes = differences({"spec": spec.to_dict()}, {"spec": fitting.to_dict()})
    fields = ", ".join(f"{path} {new}" for path, _, new in changes)
    raise BadInput(f"{verdict} (spec): the nearest that fits has {cost(fitting).params:,} parameters, with {fields}")


def require_fitted_spec(spec: NetSpec, budget: int, name: str) -> NetSpec:
    """`fitted_spec`; raises BadInput, which says the network's `name`, where nothing of its proportions fits."""
    found = fitted_spec(spec, checked_budget(budget))
    if found is None:
        raise BadInput(f"no network of {name}'s proportions has {budget:,} parameters or less (budget): give more")
    return found


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
