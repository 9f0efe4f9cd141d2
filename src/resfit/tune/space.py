"""The search space: recipe fields with ranges or choices, from a YAML file. Imports neither Optuna nor torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resfit.errors import BadField, BadInput
from resfit.fields import from_plain, is_within, override, read_yaml, to_plain
from resfit.recipe import Recipe
from resfit.shipped import find_yaml

_FOLDER = "spaces"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Values of one field: numbers from `low` to `high`, integers if both bounds (and `step`) are, or one of `choices`.

    `log` samples on a logarithmic scale; `step` samples low, low + step, ... up to high. A choice may be any YAML
    value.
    """

    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise BadField("both a range and choices", "choices", "give one of them")
            if len(set(self.labels)) != len(self.choices):
                raise BadField("a choice appears twice", "choices", "give each once")
            return
        if self.low is None or self.high is None:
            raise BadField("neither choices nor a range", "low", "give low and high, or choices")
        if not -float("inf") < self.low < self.high < float("inf"):
            raise BadField(f"from {self.low} to {self.high}", "high", "give a number above low")
        if self.step is not None and (self.step <= 0 or self.log):
            raise BadField(f"step is {self.step}", "step", "give a number above 0, without log")
        if self.log and self.low <= 0:
            raise BadField(f"from {self.low} on a logarithmic scale", "low", "give a number above 0")

    @property
    def whole(self) -> bool:
        """Whether only integers are sampled."""
        return all(type(value) is int for value in (self.low, self.high, 1 if self.step is None else self.step))

    @property
    def labels(self) -> tuple[str | int | float | bool | None, ...]:
        """The choices as Optuna stores them: scalars unchanged, lists and mappings as JSON."""
        return tuple(json.dumps(c) if isinstance(c, list | tuple | Mapping) else c for c in self.choices)

    def value(self, drawn: Any) -> Any:
        """Return the field's value for a sampled one: the choice with this label, or the number itself."""
        return self.choices[self.labels.index(drawn)] if self.choices else drawn


@dataclass(frozen=True, kw_only=True)
class Space:
    """The fields that vary, by dotted path; a `*` stands for every item of a list ("spec.stages.*.kernel")."""

    name: str
    dimensions: Mapping[str, Dimension]

    def __post_init__(self) -> None:
        for before, after in itertools.combinations(self.dimensions, 2):
            if is_within(before, after):
                raise BadInput(
                    f"{after} would overwrite {before} ({self.name}): list it first, or give only one of them"
                )

    def apply(self, recipe: Recipe, drawn: Mapping[str, Any]) -> Recipe:
        """Return `recipe` with the sampled values; raises BadInput if they are incompatible."""
        plain = to_plain(recipe, whole=True)
        for path, value in drawn.items():
            for place in _places(plain, path):
                plain = override(plain, place, self.dimensions[path].value(value))
        return Recipe.from_dict(plain)

    def check(self, recipe: Recipe) -> None:
        """Raise BadInput for a field that `recipe` does not have, or a value of a type that the field cannot take.

        Values out of range are allowed, as the valid range may depend on other fields.
        """
        plain = to_plain(recipe, whole=True)
        for path, dimension in self.dimensions.items():
            places = _places(plain, path)
            if not places:
                raise BadInput(f"no such field in {recipe.name} ({self.name}: {path}): resfit train --help lists them")
            for value in dimension.choices or (dimension.low, dimension.high):
                try:
                    Recipe.from_dict(override(plain, places[0], value))
                except BadField:
                    continue
                except BadInput as error:
                    raise BadInput(f"{self.name}: {error}") from None

    def refuse_fixed(self, fields: Iterable[str]) -> None:
        """Raise BadInput if one of `fields`, set for all trials, also varies: its value would be overwritten."""
        for field in fields:
            for path in self.dimensions:
                if is_within(field, path):
                    raise BadInput(
                        f"this field is varied by the search (--{field}; {self.name}: {path}): leave it out of "
                        "one of them"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in the format that `get_space` reads."""
        return {
            path: {"choices": list(d.choices)}
            if d.choices
            else {"low": d.low, "high": d.high, "step": d.step, "log": d.log}
            for path, d in self.dimensions.items()
        }


def _places(plain: Any, path: str) -> list[str]:
    """Return the dotted paths in `plain` that `path` matches: several with a `*`, none if nothing is there."""
    head, _, rest = path.partition(".")
    if isinstance(plain, list):
        keys = [str(n) for n in range(len(plain))]
        keys = keys if head == "*" else [key for key in keys if key == head]
        found = [(key, plain[int(key)]) for key in keys]
    elif isinstance(plain, Mapping):
        found = [(head, plain[head])] if head in plain else []
    else:  # an optional section that is None
        return [path] if plain is None else []
    if not rest:
        return [key for key, _ in found]
    return [f"{key}.{place}" for key, item in found for place in _places(item, rest)]


def get_space(target: str | Path) -> Space:
    """Return the space with this name, or from a YAML file that maps fields to {low, high, log, step} or {choices}."""
    path = find_yaml(target, _FOLDER, "space")
    data = read_yaml(path)
    if not isinstance(data, dict) or not data:
        raise BadInput(f"not a space ({path}): give a mapping from fields to ranges or choices")
    return Space(name=path.stem, dimensions={str(k): from_plain(Dimension, v, str(k)) for k, v in data.items()})
