"""The budget solver: for a limit on parameters, the networks of each family that fill it."""

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

OWN = "own"  # what stands in a design for the family, where it is a given network's own shape
_THINNER = (1.0, 0.7, 0.5, 0.35, 0.25)  # parts of what is in proportion, tried where MACs are limited
_USUAL, _WIDEST = 64, 65_536  # widths

Counts = tuple[int, ...]  # one for each stage
Shape = tuple[Counts, Counts]  # blocks and widths


@dataclass(frozen=True, kw_only=True)
class Design:
    """A network that fills a budget, with its exact price.

    `depth` counts the layers with weights on the longest path, as papers' names do (WRN's count two more). `departure`
    says in doublings how far its proportions are from its family's published ones; see `design`.
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
        """Whether it leaves at most 2 % of the budget over."""
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
    """Networks that fill `budget` trainable parameters and never exceed it, the most promising first.

    Of each family, or of `family` alone, there is at most one network for each number of blocks a stage: among widths
    in multiples of 8 or 16 that leave at most 2 % of the budget over, the ones nearest to the family's proportions.
    Finer widths come only where a family has none, and a network that leaves more over where no family has one. `macs`
    limits the multiply-accumulates of an image's forward pass; to keep to it, early stages become thinner, and a
    further stage may halve the map once more. `top` limits the networks of each family.

    Within a family they rank by `departure`: the doublings between its blocks a stage and the published network's, and
    between each stage's width and twice the one before it, added up, and one for a further stage. All hold about as
    many parameters, so what sets them apart is their proportions, and the published ones are known to train well; far
    deeper and thinner networks were found slower and no better (Zagoruyko & Komodakis 2016). Of equals the fuller comes
    first. Families follow one another by the best public result near this size (`Known`), those without one last. Such
    results come from unlike trainings: they say what a family has reached, not which is best.

    Raises BadInput for an unknown family, or where no network keeps to the limits.
    """
    checked_budget(budget)
    images = ImageShape(size=size, channels=channels, classes=classes)
    found = {each.name: _Search(each, images, budget, macs).ranked(top) for each in _chosen(family)}
    names = sorted(found, key=lambda name: _by_known(FAMILIES[name]))
    most = max(map(len, found.values()))
    ranked = [found[name][place] for place in range(most) for name in names if place < len(found[name])]
    if not ranked:
        limits = f"{budget:,} parameters" + (f" and {macs:,} MACs" if macs else "")
        raise BadInput(f"no network of {family or 'any family'} within {limits} (budget): give more of them")
    return [each for each in ranked if each.full] or ranked


def fitted_design(spec: NetSpec, budget: int, *, macs: int | None = None) -> Design | None:
    """The network of `spec`'s own shape that fills `budget`, as the design of a family called "own".

    A limit on `macs` may leave more of the budget over. The departure is from the spec's proportions. None where no
    network of these keeps to the limits.
    """
    found, within = fitted_spec(spec, budget), budget
    while found and macs is not None and (needed := cost(found).macs) > macs:
        within = min(within - 1, int(within * macs / needed))
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
    """The search through one family."""

    def __init__(self, family: Family, images: ImageShape, budget: int, macs: int | None) -> None:
        self.family, self.images, self.budget, self.macs = family, images, budget, macs
        self.price = _price_of_whole(family, images) if family.widening else _price_by_stages(family, images)

    def ranked(self, top: int | None) -> list[Design]:
        """The best network for each number of blocks, by rank, `top` at most; where none is full, the fullest alone."""
        fullest: list[Shape] = []
        for step in self.family.steps:
            found = [best for depth in self.family.depths if (best := self.best(depth, step))]
            if full := [shape for shape in found if self.full(shape)]:
                return [self.designed(*shape) for shape in sorted(full, key=self.rank)[:top]]
            fullest = sorted([*fullest, *found], key=self.rank)[:1]
        return [self.designed(*shape) for shape in fullest]

    def best(self, depth: int, step: int) -> Shape | None:
        """Of networks with `depth` blocks a stage the one nearest to the family's proportions, or the fullest."""
        stages = self.images.stages
        counts = (stages,) if self.macs is None else (stages, stages + 1)
        shapes = [((depth,) * count, widths) for count in counts for widths in self.fillings((depth,) * count, step)]
        return min(shapes, key=self.rank) if shapes else None

    def full(self, shape: Shape) -> bool:
        """Whether it leaves at most 2 % of the budget over."""
        return self.price(*shape)[0] >= FULL * self.budget

    def rank(self, shape: Shape) -> tuple[bool, float, int]:
        """Full ones first, by departure; the others by what they leave over."""
        full = self.full(shape)
        return not full, round(self.departure(*shape), 6) if full else 0.0, -self.price(*shape)[0]

    def fillings(self, blocks: Counts, step: int) -> Iterator[Counts]:
        """Widths that keep to the limits: early ones about in proportion, the last as wide as can be."""
        parts = [1] if self.family.widening else [2**i for i in range(len(blocks))]

        def in_proportion(first: int) -> int:
            return self.price(blocks, tuple(first * part for part in parts))[0]

        near = round(_USUAL * (self.budget / in_proportion(_USUAL)) ** 0.5)  # a price grows about as widths squared
        first = _widest(lambda width: in_proportion(width) <= self.budget, step, least=step, near=near)
        if not first:
            return
        ideal = first * (self.budget / in_proportion(first)) ** 0.5
        near = first * parts[-1]
        for early in self.early([ideal * part for part in parts[:-1]], step):
            if last := self.last(blocks, early, step, near):
                yield (*early, last)
                near = last

    def early(self, ideals: list[float], step: int) -> Iterator[Counts]:
        """Widths of all stages but the last: multiples of `step` around the ideal ones, and thinner ones if need be."""
        yield from _rising(
            product(*([step * max(1, round(ideal / step) + off) for off in (-1, 0, 1)] for ideal in ideals))
        )
        if self.macs is not None:
            yield from _rising(
                tuple(step * max(1, round(ideal * part / step)) for ideal in ideals) for part in _THINNER
            )

    def last(self, blocks: Counts, early: Counts, step: int, near: int) -> int:
        """The last stage's width, which is looked for from `near` on; 0 where none will do."""

        def fits(width: int) -> bool:
            params, macs = self.price(blocks, (*early, width))
            return params <= self.budget and (self.macs is None or macs <= self.macs)

        return _widest(fits, step, least=max((step, *early)), near=near)

    def departure(self, blocks: Counts, widths: Counts) -> float:
        """Doublings from the family's blocks a stage and from twice the width before, and one for a stage more."""
        off = [math.log2(blocks[0] / self.family.blocks), *(math.log2(b / a) - 1 for a, b in pairwise(widths))]
        return sum(map(abs, off)) + len(blocks) - self.images.stages

    def designed(self, blocks: Counts, widths: Counts) -> Design:
        """The network itself."""
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
    """The largest multiple of `step` from `least` on that fits, looked for from `near` on; 0 where none does."""
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


Price = Callable[[Counts, Counts], tuple[int, int]]  # of blocks and widths, in parameters and MACs


def _price_of_whole(family: Family, images: ImageShape) -> Price:
    """The price of a network as a whole."""

    @cache
    def price(blocks: Counts, widths: Counts) -> tuple[int, int]:
        found = cost(family.spec(images, blocks, widths))
        return found.params, found.macs

    return price


def _price_by_stages(family: Family, images: ImageShape) -> Price:
    """The same to the unit, as a sum over blocks of which like ones are priced once: a search asks for thousands."""

    @cache
    def stage(i: int, before: int, width: int) -> dict[str, tuple[int, int]]:
        """The parts of a network that ends with stage i, which is of `width` and behind one of width `before`."""
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
