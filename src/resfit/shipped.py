"""The YAML files that come with resfit and are known by their names: recipes/, studies/, spaces/."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from resfit.errors import BadInput
from resfit.fields import nearest, read_yaml


def shipped_folder(folder: str) -> Path:
    """One of the folders inside the package."""
    return Path(str(resources.files("resfit") / folder))


def shipped_names(folder: str) -> list[str]:
    """The names of its YAML files, sorted."""
    return sorted(path.stem for path in shipped_folder(folder).glob("*.yaml"))


def find_yaml(target: str | Path, folder: str, what: str) -> Path:
    """The file of a name in `folder`, or the one that `target` is a path to.

    Raises BadInput for a name that is not there; `what` says in it what was looked for.
    """
    path, name, names = Path(target), str(target), shipped_names(folder)
    if name in names:
        return shipped_folder(folder) / f"{name}.yaml"
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # no text that a path can be
        is_file = False
    if is_file or path.suffix in (".yaml", ".yml"):
        return path
    raise BadInput(f"unknown {what} ({name}): {nearest(name, names)}")


def read_named(target: str | Path, folder: str, what: str, content: str) -> dict[str, Any]:
    """The mapping in the file of `find_yaml`; its name is the file's unless it says otherwise.

    Raises BadInput, which says what its `content` should be, where it is no mapping.
    """
    path = find_yaml(target, folder, what)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"not a {what} ({path}): give a mapping with {content}")
    return {"name": path.stem, **data}
