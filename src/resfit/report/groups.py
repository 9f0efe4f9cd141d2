"""Group runs for reports: average runs of one resolved recipe, compare recipes on one data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from resfit.fields import leaves
from resfit.record import Comparison, RunRecord, Summary, compare, settings, summarize
from resfit.report.words import data_name, device, processor


@dataclass(frozen=True, kw_only=True)
class RecipeGroup:
    """The runs of one resolved recipe on one data set, ordered by seed. `tone` is the index of the recipe's colour.

    `accuracy_tta` is None if any run lacks it, `seconds` and `rate` are None if the runs' machines differ. `repeated`
    holds the seeds that occur more than once: such runs are not independent.
    """

    label: str
    tone: int
    runs: tuple[RunRecord, ...]
    accuracy: Summary
    accuracy_tta: Summary | None
    seconds: Summary | None
    rate: Summary | None
    peeked: bool
    repeated: tuple[int, ...]

    @property
    def params(self) -> int:
        """Trainable parameters of the recipe's network."""
        return self.runs[0].params


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A comparison of two recipes; `better` has the higher mean."""

    better: RecipeGroup
    worse: RecipeGroup
    comparison: Comparison

    @property
    def decided(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        interval = self.comparison.interval
        return interval is not None and not interval[0] <= 0.0 <= interval[1]


@dataclass(frozen=True, kw_only=True)
class DataGroup:
    """All recipes on one data set, best mean first. `tta`: all runs have an accuracy with TTA, used for ranking."""

    name: str
    recipes: tuple[RecipeGroup, ...]
    tta: bool

    @property
    def runs(self) -> list[RunRecord]:
        """The runs, recipe by recipe."""
        return [run for recipe in self.recipes for run in recipe.runs]

    def ranked_by(self, recipe: RecipeGroup) -> Summary:
        """Return the accuracy by which the recipes of this group are ranked and compared."""
        return recipe.accuracy_tta if self.tta and recipe.accuracy_tta else recipe.accuracy

    def pairs(self) -> list[Pair]:
        """Return all pairs of recipes whose difference has an interval."""
        pairs = [
            Pair(better=a, worse=b, comparison=compare(self.ranked_by(b).values, self.ranked_by(a).values))
            for a, b in combinations(self.recipes, 2)
        ]
        return [pair for pair in pairs if pair.comparison.interval]


def unique(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records without duplicates, in order."""
    alike: dict[tuple[str, int], list[RunRecord]] = {}  # only compare within these: there may be thousands of runs
    kept = []
    for record in records:
        others = alike.setdefault((record.recipe, record.seed), [])
        if record not in others:
            others.append(record)
            kept.append(record)
    return kept


def group(records: Sequence[RunRecord]) -> list[DataGroup]:
    """Group records by data set and recipe. Different image folders are separate data sets; splits of one are not."""
    folders = [run for run in records if run.data.get("name") == "folder"]
    by_files = all(run.data.get("test_digest") for run in folders)  # records of older versions have only counts
    by_data = _by(records, partial(_data_key, by_files=by_files))
    names = [data_name(runs[0]) for runs in by_data.values()]
    return [
        _data_group(f"{name} ({i + 1})" if names.count(name) > 1 else name, runs)
        for i, (name, runs) in enumerate(zip(names, by_data.values(), strict=True))
    ]


def _data_key(run: RunRecord, by_files: bool) -> tuple[object, ...]:
    """Return a key of the data set: equal for runs tested on the same images, whatever part of it they were trained on.

    Image folders are identified by their test files (`by_files`), or else by their number of training and validation
    images.
    """
    supports = tuple((score.name, score.support) for score in run.test.per_class)
    count = sum(run.data.get(part) or 0 for part in ("n_train", "n_val"))
    own = (run.data.get("test_digest") if by_files else count) if run.data.get("name") == "folder" else None
    return data_name(run), supports, own


def _by(records: Iterable[RunRecord], key: Callable[[RunRecord], tuple[object, ...]]) -> dict[object, list[RunRecord]]:
    found: dict[object, list[RunRecord]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _data_group(name: str, runs: list[RunRecord]) -> DataGroup:
    tta = all(run.test.accuracy_tta is not None for run in runs)
    variants = list(_by(runs, lambda run: run.identity).values())
    labels = _labels([variant[0] for variant in variants])
    order = sorted(range(len(variants)), key=lambda i: -_mean(variants[i], tta))
    recipes = [_recipe_group(labels[i], tone, variants[i]) for tone, i in enumerate(order)]
    return DataGroup(name=name, recipes=tuple(recipes), tta=tta)


def _mean(runs: Sequence[RunRecord], tta: bool) -> float:
    return sum(run.accuracy if tta else run.test.accuracy for run in runs) / len(runs)


def _recipe_group(label: str, tone: int, runs: list[RunRecord]) -> RecipeGroup:
    seeds = [run.seed for run in runs]
    averaged = [run.test.accuracy_tta for run in runs if run.test.accuracy_tta is not None]
    one_machine = len({(device(run), processor(run)) for run in runs}) == 1
    return RecipeGroup(
        label=label,
        tone=tone,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        accuracy=summarize([run.test.accuracy for run in runs]),
        accuracy_tta=summarize(averaged) if len(averaged) == len(runs) else None,
        seconds=summarize([run.seconds_to_result for run in runs]) if one_machine else None,
        rate=summarize([run.images_per_second for run in runs]) if one_machine else None,
        peeked=any(run.peeked for run in runs),
        repeated=tuple(sorted({seed for seed in seeds if seeds.count(seed) > 1})),
    )


def _parents(run: RunRecord) -> dict[str, str]:
    """Return the trained networks that the run started from and learned from, as fields like those of its recipe."""
    given = {"init": [run.init] if run.init else [], "teachers": run.teachers}
    return {
        name: " and ".join(f"{model.path} ({model.sha256[:8]})" for model in models) or "none"
        for name, models in given.items()
    }


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    """Return the recipes' names; those that share one also state what distinguishes them: "name · train.epochs 8"."""
    flat = [leaves({**settings(run.config), **_parents(run)}) for run in runs]
    labels = []
    for run, fields in zip(runs, flat, strict=True):
        namesakes = [other for other, peer in zip(flat, runs, strict=True) if peer.recipe == run.recipe]
        differing = [key for key in fields if any(other.get(key) != fields[key] for other in namesakes)]
        labels.append(" · ".join([run.recipe, *(f"{key} {fields[key]}" for key in differing[:3])]))
    return [label if labels.count(label) == 1 else f"{label} · {i + 1}" for i, label in enumerate(labels)]
