"""The study file: a recipe, named overrides of it, and the resulting recipes. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from resfit.budget import require_fit
from resfit.counts import parse_count
from resfit.errors import BadInput, named
from resfit.fields import from_plain, is_within, nearest
from resfit.recipe import Recipe, get_recipe
from resfit.scale import fitted, scaled
from resfit.shipped import read_named, shipped_names

Overrides = Mapping[str, Any]
_FOLDER = "studies"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A base recipe and named variants: overrides of fields at dotted paths ("train.batch_size").

    `points` lists the variants one by one; `axes` are combined as a product, and a point's name is then the names of
    its values joined by "-". Two overrides are special: `recipe` replaces the base recipe, and `fit` scales the
    network's widths to fill a budget. `runs` is the number of seeds, 0, 1, ...; `baseline` is the point that the others
    are compared with.
    """

    name: str
    recipe: str
    baseline: str
    description: str = ""
    runs: int = 3
    axes: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name.startswith("."):
            raise BadInput(f"name is {self.name!r} (study): give a name that can be used for a folder")
        if bool(self.axes) == bool(self.points):
            raise BadInput(f"a study needs either axes or points ({self.name}): give one of them")
        if self.runs < 1:
            raise BadInput(f"runs is {self.runs} ({self.name}): give at least 1")
        settings = self.settings()
        if self.baseline not in settings:
            raise BadInput(f"no such point ({self.name}: baseline {self.baseline}): {nearest(self.baseline, settings)}")

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the overrides of every point, by name."""
        if self.points:
            return {_text(name): dict(_mapping(f"points.{name}", value)) for name, value in self.points.items()}
        axes = [list(_mapping(f"axes.{name}", values).items()) for name, values in self.axes.items()]
        if not all(axes):
            raise BadInput(f"an axis without values ({self.name}: axes): give names with overrides")
        found: dict[str, dict[str, Any]] = {}
        for choice in product(*axes):
            parts = [_mapping(f"axes.{_text(name)}", overrides) for name, overrides in choice]
            point = "-".join(_text(name) for name, _ in choice)
            if point in found:
                raise BadInput(f"two points are called {point} ({self.name}): give the values of the axes other names")
            paths = [path for part in parts for path in part]
            if twice := [path for path in paths if sum(is_within(path, other) for other in paths) > 1]:
                raise BadInput(f"two axes set {twice[0]} ({self.name}, point {point}): set it in only one of them")
            found[point] = {path: value for part in parts for path, value in part.items()}
        return found

    def recipes(
        self,
        overrides: Overrides | None = None,
        *,
        epochs: int | None = None,
        fraction: float = 1.0,
        counted: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    ) -> dict[str, Recipe]:
        """Return every point's recipe, named after the point and checked against its budget.

        A point's own overrides take precedence over `overrides` of the same fields; it may not replace a section of
        which they set a field. `epochs` scales the base recipe to that length, and every point in proportion;
        `fraction` of the training images is used. `counted` sets the number of classes of a recipe on an image folder,
        before it is checked. Raises BadInput, which names the point.
        """
        base = get_recipe(self.recipe, overrides)
        factor = 1.0 if epochs is None else epochs / base.train.epochs
        made = {}
        for name, setting in self.settings().items():
            with named(f"{self.name}, point {name}"):
                made[name] = scaled(self._recipe(name, overrides or {}, setting, counted), factor, fraction)
                require_fit(made[name].spec, made[name].budget)
        if len({recipe.data.name for recipe in made.values()}) > 1:
            raise BadInput(
                f"points on different images cannot be compared ({self.name}: data.name): give all points the same"
            )
        return made

    def _recipe(self, name: str, overrides: Overrides, own: Overrides, counted: Callable[[Recipe], Recipe]) -> Recipe:
        for path in own:
            if lost := [other for other in overrides if other != path and is_within(other, path)]:
                raise BadInput(f"the point replaces all of {path} (--{lost[0]}): set it in the study")
        setting = {**overrides, **own}
        changes = ", ".join(f"{path} {value}" for path, value in setting.items() if path != "recipe")
        origin, budget = str(setting.pop("recipe", self.recipe)), setting.pop("fit", None)
        recipe = counted(get_recipe(origin, setting))
        if budget is not None:
            if "budget" in setting:
                raise BadInput("fit already sets the budget (fit, budget): leave one of them out")
            recipe = fitted(recipe, parse_count(str(budget), "fit"))
        return recipe.replace({"name": name, "description": f"{origin} with {changes}" if changes else origin})


def _mapping(place: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{value!r} is not a mapping ({place}): give names with overrides, {{}} for none")
    return value


def _text(name: object) -> str:
    """Return a point's name as a string: YAML reads 32 as a number; booleans (`on`, `off`) and null are rejected."""
    if isinstance(name, bool) or name is None:
        raise BadInput(f"{name} is not a name (study): put it in quotes")
    return str(name)


def study_names() -> list[str]:
    """Return the names of the studies that come with resfit."""
    return shipped_names(_FOLDER)


def get_study(target: str | Path) -> Study:
    """Return the study with this name, or from this YAML file; its default name is the file's."""
    return from_plain(Study, read_named(target, _FOLDER, "study", "a recipe, a baseline, and points or axes"))
