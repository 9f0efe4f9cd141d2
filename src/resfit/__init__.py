"""resfit: fit residual networks to a parameter budget and train them.

    import resfit

    recipe = resfit.get_recipe("digits")
    print(resfit.cost(recipe.spec).params)      # computed without building the network
    record = resfit.train(recipe, seed=0)       # writes to runs/digits/0
    net = resfit.load("runs/digits/0")

Every name is imported on first use, so that commands start without waiting seconds for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resfit.budget import judge
    from resfit.cost import cost
    from resfit.errors import BadInput, ResfitError, RunFailed
    from resfit.modelfile import load, save
    from resfit.net import build
    from resfit.observer import Observer
    from resfit.predict import predict
    from resfit.preprocess import transform
    from resfit.recipe import Recipe, get_recipe, recipe_names
    from resfit.record import RunRecord, compare, read_record, summarize
    from resfit.run import train
    from resfit.scale import fitted, scaled
    from resfit.solver import Design, design
    from resfit.spec import NetSpec
    from resfit.trained import evaluate
    from resfit.version import __version__

__all__ = [
    "BadInput",
    "Design",
    "NetSpec",
    "Observer",
    "Recipe",
    "ResfitError",
    "RunFailed",
    "RunRecord",
    "__version__",
    "build",
    "compare",
    "cost",
    "design",
    "evaluate",
    "fitted",
    "get_recipe",
    "judge",
    "load",
    "predict",
    "read_record",
    "recipe_names",
    "save",
    "scaled",
    "summarize",
    "train",
    "transform",
]


_HOMES = {
    "budget": ["judge"],
    "cost": ["cost"],
    "errors": ["BadInput", "ResfitError", "RunFailed"],
    "modelfile": ["load", "save"],
    "net": ["build"],
    "observer": ["Observer"],
    "predict": ["predict"],
    "preprocess": ["transform"],
    "recipe": ["Recipe", "get_recipe", "recipe_names"],
    "record": ["RunRecord", "compare", "read_record", "summarize"],
    "run": ["train"],
    "scale": ["fitted", "scaled"],
    "solver": ["Design", "design"],
    "spec": ["NetSpec"],
    "trained": ["evaluate"],
    "version": ["__version__"],
}


class _Package(ModuleType):
    """Import exported names on first use.

    Some functions share their name with a submodule. Python sets `resfit.train` to the submodule when that is imported;
    the properties keep it the function.
    """

    def __dir__(self) -> list[str]:
        """List the names for tab completion."""
        return sorted({*super().__dir__(), *__all__})


def _at_first_use(module: str, name: str) -> property:
    def get(package: ModuleType) -> Any:
        return getattr(import_module(f"resfit.{module}"), name)

    def put(package: ModuleType, value: object) -> None:
        if not isinstance(value, ModuleType):  # Python sets a submodule as an attribute when it is imported
            raise AttributeError(f"resfit.{name} cannot be replaced: replace resfit.{module}.{name} where it is used")

    return property(get, put)


for _module, _names in _HOMES.items():
    for _name in _names:
        setattr(_Package, _name, _at_first_use(_module, _name))

sys.modules[__name__].__class__ = _Package
