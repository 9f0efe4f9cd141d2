"""The YAML files that come with resfit and are known by their names: recipes/, studies/, spaces/."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from resfit.errors import BadInput
from resfit.fields import nearest


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
