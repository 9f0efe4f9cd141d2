"""The budget solver: find networks of each family that fill a budget of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

from resfit.budget import checked_budget
from resfit.cost import Layer, cost
from resfit.errors import BadInput
from resfit.families import FAMILIES, Family, ImageShape
from resfit.fields import nearest
from resfit.fitting import FULL, departure, fitted_spec
from resfit.spec import NetSpec

OWN = "own"  # the family name of a Design that was fitted from a given spec
_THINNER = (1.0, 0.7, 0.5, 0.35, 0.25)  # fractions of the proportional widths, tried within narrow limits
_USUAL, _WIDEST = 64, 65_536  # widths: start and end of the search

Counts = tuple[int, ...]  # one for each stage
Shape = tuple[Counts, Counts]  # blocks and widths


@dataclass(frozen=True, kw_only=True)
class Design:
    """A network that fills a budget, with its exact cost.

    `depth` counts the layers with weights on the longest path, as in the names of most papers (WRN counts two more).
    `departure` measures in doublings how far its proportions are from its family's published ones; see `design`.
    """

    family: str
    blocks: Counts
    widths: Counts
    depth: int
    departure: float
    budget: int
    params: int
    macs: int
    activation_bytes: int
    spec: NetSpec

    @property
    def full(self) -> bool:
        """Whether the network uses at least 98 % of the budget."""
        return self.params >= FULL * self.budget


def design(
    budget: int,
    *,
    family: str | None = None,
    top: int | None = None,
    macs: int | None = None,
    size: int = 32,
    channels: int = 3,
    classes: int = 10,
) -> list[Design]:
    """Find networks that fill `budget` trainable parameters without exceeding it, the most promising first.

    Each family, or `family` alone, gives at most one network per number of blocks in a stage. Widths are multiples of 8
    or 16, tried near the family's proportions; of those that use at least 98 % of the budget, it has the nearest. Finer
    widths are tried only if a family has no such network, and networks that use less of the budget are returned only if
    no family has a fuller one. `macs` limits the multiply-accumulates of the forward pass of one image; to stay within
    narrow limits, early stages may be thinner, and within `macs` one more stage may halve the map again. `top` limits
    the number of networks per family.

    Within a family, networks are ranked by `departure`, a sum of doublings: between the number of blocks in a stage and
    that of the published network, and between each stage's width and twice the previous one; an extra stage adds one.
    All have about as many parameters, so they differ in their proportions, and the published ones are known to train
    well; far deeper and thinner networks were found slower and no better (Zagoruyko & Komodakis 2016). Ties are broken
    by the number of parameters, larger first. The result lists the first network of each family, then the second of
    each, and so on, with the families ordered by their best public result near this size (`Known`), those without one
    last. These results come from different training setups: they show what a family has reached, not which family is
    best.

    Raises BadInput for an unknown family, or if no network is within the limits.
    """
    checked_budget(budget)
    images = ImageShape(size=size, channels=channels, classes=classes)
    found = {each.name: _Search(each, images, budget, macs).ranked(top) for each in _chosen(family)}
    names = sorted(found, key=lambda name: _by_known(FAMILIES[name]))
    most = max(map(len, found.values()))
    ranked = [found[name][place] for place in range(most) for name in names if place < len(found[name])]
    if not ranked:
        limits = f"{budget:,} parameters" + (f" and {macs:,} MACs" if macs else "")
        raise BadInput(f"no network of {family or 'any family'} within {limits} (budget): raise the limits")
    return [each for each in ranked if each.full] or ranked


def fitted_design(spec: NetSpec, budget: int, *, macs: int | None = None) -> Design | None:
    """Scale the network of `spec` to fill `budget` and return it as a Design of the family "own".

    A limit on `macs` may leave more of the budget unused. The departure is measured from the spec's proportions.
    Returns None if no network of these proportions is within the limits.
    """
    found, within = fitted_spec(spec, budget), budget
    while found and macs is not None and (needed := cost(found).macs) > macs:
        within = min(cost(found).params - 1, int(within * macs / needed))
        found = fitted_spec(spec, within) if within else None
    if found is None:
        return None
    return _designed(OWN, found, budget, departure(spec, found), tuple(stage.channels for stage in found.stages))


def _chosen(family: str | None) -> list[Family]:
    if family is None:
        return list(FAMILIES.values())
    if family not in FAMILIES:
        raise BadInput(f"unknown family ({family}): {nearest(family, FAMILIES)}")
    return [FAMILIES[family]]


def _by_known(family: Family) -> tuple[float, str]:
    return (-family.known.accuracy if family.known else 0.0, family.name)


class _Search:
    """The search within one family."""

    def __init__(self, family: Family, images: ImageShape, budget: int, macs: int | None) -> None:
        self.family, self.images, self.budget, self.macs = family, images, budget, macs
        self.price = _price_of_whole(family, images) if family.widening else _price_by_stages(family, images)

    def ranked(self, top: int | None) -> list[Design]:
        """Return the best network per number of blocks, ranked, at most `top`; if none is full, only the fullest."""
        fullest: list[Shape] = []
        for step in self.family.steps:
            found = [best for depth in self.family.depths if (best := self.best(depth, step))]
            if full := [shape for shape in found if self.full(shape)]:
                return [self.designed(*shape) for shape in sorted(full, key=self.rank)[:top]]
            fullest = sorted([*fullest, *found], key=self.rank)[:1]
        return [self.designed(*shape) for shape in fullest]

    def best(self, depth: int, step: int) -> Shape | None:
        """Return the best-ranked shape with `depth` blocks per stage, or None if none is within the limits."""
        stages = self.images.stages
        counts = (stages,) if self.macs is None else (stages, stages + 1)
        shapes = [((depth,) * count, widths) for count in counts for widths in self.fillings((depth,) * count, step)]
        return min(shapes, key=self.rank) if shapes else None

    def full(self, shape: Shape) -> bool:
        """Return whether the shape uses at least 98 % of the budget."""
        return self.price(*shape)[0] >= FULL * self.budget

    def rank(self, shape: Shape) -> tuple[bool, float, int]:
        """Sort key: full shapes first, by departure; the others by the number of parameters, largest first."""
        full = self.full(shape)
        return not full, round(self.departure(*shape), 6) if full else 0.0, -self.price(*shape)[0]

    def fillings(self, blocks: Counts, step: int) -> Iterator[Counts]:
        """Yield widths within the limits: early stages about in proportion, the last one as wide as possible."""
        parts = [1] if self.family.widening else [2**i for i in range(len(blocks))]

        def in_proportion(first: int) -> Counts:
            return tuple(first * part for part in parts)

        def room(first: int) -> float:  # parameters and MACs grow about as width squared
            return math.sqrt(self.room(blocks, in_proportion(first)))

        near = round(_USUAL * room(_USUAL))
        first = _widest(lambda width: room(width) >= 1, step, least=step, near=near)
        thinner = self.macs is not None or not first  # other proportions may fit where these do not
        first = first or step
        ideal = first * room(first)
        near = first * parts[-1]
        for early in self.early([ideal * part for part in parts[:-1]], step, thinner):
            if last := self.last(blocks, early, step, near):
                yield (*early, last)
                near = last

    def room(self, blocks: Counts, widths: Counts) -> float:
        """Return how many times the shape's parameters and MACs are within the limits; below 1 if they are not."""
        params, macs = self.price(blocks, widths)
        return min(self.budget / params, math.inf if self.macs is None else self.macs / macs)

    def early(self, ideals: list[float], step: int, thinner: bool) -> Iterator[Counts]:
        """Yield widths of all stages but the last: multiples of `step` near the ideals, and `thinner` ones if asked."""
        yield from _rising(
            product(*([step * max(1, round(ideal / step) + off) for off in (-1, 0, 1)] for ideal in ideals))
        )
        if thinner:
            yield from _rising(
                tuple(step * max(1, round(ideal * part / step)) for ideal in ideals) for part in _THINNER
            )

    def last(self, blocks: Counts, early: Counts, step: int, near: int) -> int:
        """Return the largest width of the last stage within the limits, searching from `near`; 0 if there is none."""
        least = max((step, *early))
        return _widest(lambda width: self.room(blocks, (*early, width)) >= 1, step, least=least, near=near)

    def departure(self, blocks: Counts, widths: Counts) -> float:
        """Return the sum of doublings from the family's proportions, plus one for an extra stage; see `design`."""
        off = [math.log2(blocks[0] / self.family.blocks), *(math.log2(b / a) - 1 for a, b in pairwise(widths))]
        return sum(map(abs, off)) + len(blocks) - self.images.stages

    def designed(self, blocks: Counts, widths: Counts) -> Design:
        """Build the Design of a shape."""
        spec = self.family.spec(self.images, blocks, widths)
        return _designed(self.family.name, spec, self.budget, self.departure(blocks, widths), widths)


def _designed(family: str, spec: NetSpec, budget: int, departure: float, widths: Counts) -> Design:
    price = cost(spec)
    return Design(
        family=family,
        blocks=tuple(stage.blocks for stage in spec.stages),
        widths=widths,
        depth=2 + sum(len(block.convs) for _, _, block in spec.plan()),
        departure=departure,
        budget=budget,
        params=price.params,
        macs=price.macs,
        activation_bytes=price.activation_bytes,
        spec=spec,
    )


def _rising(widths: Iterable[Counts]) -> Iterator[Counts]:
    return (each for each in widths if all(a <= b for a, b in pairwise(each)))


def _widest(fits: Callable[[int], bool], step: int, *, least: int, near: int) -> int:
    """Return the largest multiple of `step`, at least `least`, that fits; 0 if none. The search starts at `near`."""
    low, high = least // step - 1, _WIDEST // step + 1
    at, stride = max(near, least) // step, 1
    while high - low > 1:
        if not low < at < high:
            at = (low + high) // 2
        if fits(at * step):
            low, at = at, at + stride
        else:
            high, at = at, at - stride
        stride *= 2
    return low * step if low * step >= least else 0


Price = Callable[[Counts, Counts], tuple[int, int]]  # from blocks and widths to parameters and MACs


def _price_of_whole(family: Family, images: ImageShape) -> Price:
    """Return a function that prices each network as a whole."""

    @cache
    def price(blocks: Counts, widths: Counts) -> tuple[int, int]:
        found = cost(family.spec(images, blocks, widths))
        return found.params, found.macs

    return price


def _price_by_stages(family: Family, images: ImageShape) -> Price:
    """Return a function with exactly the same prices, as sums over blocks that are each priced only once.

    A search asks for thousands of prices.
    """

    @cache
    def stage(i: int, before: int, width: int) -> dict[str, tuple[int, int]]:
        """Return the prices of the parts of a network whose last stage i has `width`, after one of width `before`."""
        layers = cost(family.spec(images, (*(1,) * i, 2), (*(before,) * i, width))).layers
        names = {"stem": "stem.", "first": f"stages.{i}.0.", "further": f"stages.{i}.1."}
        parts = {part: _total(x for x in layers if x.name.startswith(name)) for part, name in names.items()}
        return {**parts, "end": _total(x for x in layers if not x.name.startswith(("stem.", "stages.")))}

    def price(blocks: Counts, widths: Counts) -> tuple[int, int]:
        stages = [stage(i, *pair) for i, pair in enumerate(zip((widths[0], *widths), widths, strict=False))]
        parts = [(1, stages[0]["stem"]), (1, stages[-1]["end"])]
        for count, found in zip(blocks, stages, strict=True):
            parts += [(1, found["first"]), (count - 1, found["further"])]
        return sum(n * params for n, (params, _) in parts), sum(n * macs for n, (_, macs) in parts)

    return price


def _total(layers: Iterable[Layer]) -> tuple[int, int]:
    found = list(layers)
    return sum(layer.params for layer in found), sum(layer.macs for layer in found)
