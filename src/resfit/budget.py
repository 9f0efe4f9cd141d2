"""The parameter budget: check whether a spec fits, and find the nearest one that does."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.fields import differences
from resfit.fitting import fitted_spec
from resfit.spec import NetSpec

_MOST = 10_000_000_000  # parameters; bounds the search over widths


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The size of a network compared with a budget, both in trainable parameters."""

    params: int
    budget: int

    @property
    def fits(self) -> bool:
        """Whether the network has at most `budget` parameters."""
        return self.params <= self.budget

    def __str__(self) -> str:
        share = self.params / self.budget
        if self.fits:
            return f"{self.params:,} parameters, {share:.1%} of the budget of {self.budget:,}: fits"
        return f"{self.params:,} parameters, {self.params - self.budget:,} over the budget of {self.budget:,}"


def judge(spec: NetSpec, budget: int) -> Verdict:
    """Compare the size of `spec` with `budget`; raise BadInput unless that is a whole number from 1 to 10 billion."""
    return Verdict(params=cost(spec).params, budget=checked_budget(budget))


def checked_budget(budget: int) -> int:
    """Return the budget as an int; raise BadInput unless it is a whole number from 1 to 10 billion."""
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
    """Return the verdict if the spec fits; otherwise raise BadInput with the excess and the nearest spec that fits."""
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
    """Return `fitted_spec(spec, budget)`; raise BadInput naming the network if nothing of its proportions fits."""
    found = fitted_spec(spec, checked_budget(budget))
    if found is None:
        raise BadInput(f"no network of {name}'s proportions has {budget:,} parameters or less (budget): give more")
    return found
