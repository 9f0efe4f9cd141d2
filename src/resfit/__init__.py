"""resfit fits residual networks to a parameter budget, and trains them.

    import resfit

    recipe = resfit.get_recipe("digits")
    print(resfit.cost(recipe.spec).params)      # priced, nothing is built
    record = resfit.train(recipe, seed=0)       # runs/digits/0
    net = resfit.load("runs/digits/0")

What needs torch is imported at first use.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from resfit.budget import judge
from resfit.cost import cost
from resfit.errors import BadInput, ResfitError, RunFailed
from resfit.recipe import Recipe, get_recipe, recipe_names
from resfit.record import RunRecord, compare, read_record, summarize
from resfit.solver import Design, design
from resfit.spec import NetSpec
from resfit.version import __version__

if TYPE_CHECKING:
    from resfit.modelfile import load
    from resfit.net import build
    from resfit.predict import predict
    from resfit.preprocess import transform
    from resfit.run import train
    from resfit.trained import evaluate

__all__ = [
    "BadInput",
    "Design",
    "NetSpec",
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
    "get_recipe",
    "judge",
    "load",
    "predict",
    "read_record",
    "recipe_names",
    "summarize",
    "train",
    "transform",
]


class _Package(ModuleType):
    """Gives the functions that need torch at first use.

    `train`, `evaluate` and `predict` are modules as well. Properties keep `resfit.train` the function after Python, on
    importing the module of that name, would have put the module in its place.
    """

    @property
    def train(self) -> Any:
        from resfit.run import train

        return train

    @train.setter
    def train(self, module: ModuleType) -> None:
        pass

    @property
    def evaluate(self) -> Any:
        from resfit.trained import evaluate

        return evaluate

    @evaluate.setter
    def evaluate(self, module: ModuleType) -> None:
        pass

    @property
    def predict(self) -> Any:
        from resfit.predict import predict

        return predict

    @predict.setter
    def predict(self, module: ModuleType) -> None:
        pass

    @property
    def build(self) -> Any:
        from resfit.net import build

        return build

    @property
    def load(self) -> Any:
        from resfit.modelfile import load

        return load

    @property
    def transform(self) -> Any:
        from resfit.preprocess import transform

        return transform


sys.modules[__name__].__class__ = _Package
