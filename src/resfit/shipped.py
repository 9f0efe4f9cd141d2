"""Find the YAML files that come with resfit by name: recipes/, studies/, spaces/."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from resfit.errors import BadInput
from resfit.fields import nearest, read_yaml


def shipped_folder(folder: str) -> Path:
    """Return the path of a folder of shipped files in the package."""
    return Path(str(resources.files("resfit") / folder))


def shipped_names(folder: str) -> list[str]:
    """Return the sorted names of the YAML files in that folder."""
    return sorted(path.stem for path in shipped_folder(folder).glob("*.yaml"))


def find_yaml(target: str | Path, folder: str, what: str) -> Path:
    """Return the path of the shipped file called `target` in `folder`, or `target` itself if it is a path.

    Raises BadInput for an unknown name; its message calls the missing thing `what`.
    """
    path, name, names = Path(target), str(target), shipped_names(folder)
    if name in names:
        return shipped_folder(folder) / f"{name}.yaml"
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # not a valid path
        is_file = False
    if is_file or path.suffix in (".yaml", ".yml"):
        return path
    raise BadInput(f"unknown {what} ({name}): {nearest(name, names)}")


def read_named(target: str | Path, folder: str, what: str, content: str) -> dict[str, Any]:
    """Read the mapping in the file found by `find_yaml`; "name" defaults to the file's stem.

    Raises BadInput, which names the expected `content`, if the file contains no mapping.
    """
    path = find_yaml(target, folder, what)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"not a {what} ({path}): give a mapping with {content}")
    return {"name": path.stem, **data}
