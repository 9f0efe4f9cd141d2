"""Resolve a command's TARGET, without torch: a recipe name, a recipe or spec YAML, a run folder, or a model file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from resfit.errors import BadInput, named, unreadable
from resfit.fields import nearest, read_yaml
from resfit.modelheader import read_header
from resfit.recipe import DEFAULT_BUDGET, Recipe, get_recipe, recipe_names
from resfit.spec import NetSpec


@dataclass(frozen=True, kw_only=True)
class Target:
    """A network to price, and the parameter budget to compare it with."""

    name: str
    spec: NetSpec
    budget: int = DEFAULT_BUDGET


def find_target(text: str) -> Target:
    """Resolve TARGET without importing torch; raises BadInput if it is none of the supported kinds."""
    if text in recipe_names():
        return _of_recipe(get_recipe(text))
    path = Path(text)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # not a valid path
        raise BadInput(f"not a recipe or a file ({text[:40]!r}): {getattr(error, 'strerror', error)}") from None
    if "://" in text:
        raise BadInput(f"a URL, not a file ({text}): download it first")
    if is_folder and not (path / "recipe.yaml").is_file():
        raise BadInput(f"not a run folder ({text}): give one that resfit train created, with its recipe.yaml")
    if is_folder:
        return _of_recipe(Recipe.from_yaml(path / "recipe.yaml"))
    if path.suffix == ".safetensors":
        return Target(name=text, spec=_spec_in_model(path))
    if path.suffix in (".yaml", ".yml") or is_file:
        return _of_yaml(path)
    hint = nearest(text, recipe_names())
    raise BadInput(f"neither a named recipe nor a file ({text}): {hint}")


def _of_recipe(recipe: Recipe) -> Target:
    return Target(name=recipe.name, spec=recipe.spec, budget=recipe.budget)


def _of_yaml(path: Path) -> Target:
    data = read_yaml(path)
    if isinstance(data, dict) and {"spec", "data", "optim", "train"} & set(data):
        return _of_recipe(Recipe.from_yaml(path))
    with named(path):
        return Target(name=path.stem, spec=NetSpec.from_dict(data))


def _spec_in_model(path: Path) -> NetSpec:
    try:
        metadata = read_header(path.read_bytes()).get("__metadata__", {})
        return NetSpec.from_dict(json.loads(metadata["resfit.spec"]))
    except FileNotFoundError:
        raise BadInput(f"no such file ({path}): give a model.safetensors") from None
    except KeyError:
        raise BadInput(f"not a resfit model ({path}): its metadata contains no spec") from None
    except OSError as error:
        raise unreadable("model", path, error) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"damaged model ({path}): {error}") from None
