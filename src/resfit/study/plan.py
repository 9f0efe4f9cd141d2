"""A study as a file: a recipe, overrides of it by name, and the recipes that come of them. torch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from resfit.budget import parse_count, require_fit
from resfit.errors import BadInput
from resfit.fields import from_plain, nearest
from resfit.recipe import Recipe, get_recipe
from resfit.scale import fitted, scaled
from resfit.shipped import read_named, shipped_names

Overrides = Mapping[str, Any]
_FOLDER = "studies"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A base recipe and what is varied: overrides of fields at dotted paths ("train.batch_size"), by name.

    `points` lists settings one by one; of `axes` the product is taken, and a point is then called by the names of its
    values, joined by "-". Among the overrides `recipe` starts from another recipe than the study's, and `fit` scales
    the network's widths to fill a budget. `runs` is the number of seeds, 0, 1, ...; `baseline` is the point that the
    others are compared with.
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
            raise BadInput(f"name is {self.name!r} (study): give a name that can be a folder's")
        if bool(self.axes) == bool(self.points):
            raise BadInput(f"a study has axes or points ({self.name}): give one of them")
        if self.runs < 1:
            raise BadInput(f"runs is {self.runs} ({self.name}): give at least 1")
        settings = self.settings()
        if self.baseline not in settings:
            raise BadInput(f"no such point ({self.name}: baseline {self.baseline}): {nearest(self.baseline, settings)}")

    def settings(self) -> dict[str, dict[str, Any]]:
        """The overrides of every point, by its name."""
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
                raise BadInput(f"two points are called {point} ({self.name}): name the values of the axes otherwise")
            paths = [path for part in parts for path in part]
            if twice := [path for path in paths if paths.count(path) > 1]:
                raise BadInput(f"two axes set {twice[0]} ({self.name}, point {point}): leave it to one of them")
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
        """Every point's recipe, called by the point's name and within its budget; BadInput names the point at fault.

        `overrides` come before a point's own. With `epochs` the base recipe is scaled to so many, and every point in
        the same proportion; `fraction` of the training images is used. `counted` gives a recipe for an image folder the
        number of its classes, ahead of its price.
        """
        base = get_recipe(self.recipe, overrides)
        factor = 1.0 if epochs is None else epochs / base.train.epochs
        made = {}
        for name, setting in self.settings().items():
            try:
                made[name] = scaled(self._recipe(name, {**(overrides or {}), **setting}, counted), factor, fraction)
                require_fit(made[name].spec, made[name].budget)
            except BadInput as error:
                raise BadInput(f"{self.name}, point {name}: {error}") from None
        if len({recipe.data.name for recipe in made.values()}) > 1:
            raise BadInput(f"points on different images cannot be compared ({self.name}: data.name): give all the same")
        return made

    def _recipe(self, name: str, setting: dict[str, Any], counted: Callable[[Recipe], Recipe]) -> Recipe:
        changes = ", ".join(f"{path} {value}" for path, value in setting.items() if path != "recipe")
        origin, budget = str(setting.pop("recipe", self.recipe)), setting.pop("fit", None)
        recipe = counted(get_recipe(origin, setting))
        if budget is not None:
            if "budget" in setting:
                raise BadInput("fit is a budget (fit, budget): leave one of them out")
            recipe = fitted(recipe, parse_count(str(budget), "fit"))
        return recipe.replace({"name": name, "description": f"{origin} with {changes}" if changes else origin})


def _mapping(place: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{value!r} is not a mapping ({place}): give names with overrides, {{}} for none")
    return value


def _text(name: object) -> str:
    """A point's name: YAML reads 32 as a number, and `on` and `off` as true and false."""
    if isinstance(name, bool) or name is None:
        raise BadInput(f"{name} is no name (study): put quotes around it")
    return str(name)


def study_names() -> list[str]:
    """The named studies that come with resfit."""
    return shipped_names(_FOLDER)


def get_study(target: str | Path) -> Study:
    """The study of a name or of a YAML file; it is called by the file's name unless it says otherwise."""
    return from_plain(Study, read_named(target, _FOLDER, "study", "a recipe, a baseline, and points or axes"))
