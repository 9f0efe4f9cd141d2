"""Where data is searched for and stored, and whether downloads are allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resfit.errors import BadInput
from resfit.files import cache_dir


@dataclass(frozen=True, kw_only=True)
class Locations:
    """The folders to search, and how to inform the user: `tell` takes one line."""

    data_dir: Path | None
    offline: bool
    tell: Callable[[str], None]

    @property
    def given(self) -> list[Path]:
        """The folders that the user gave, in order of precedence."""
        named = (self.data_dir, os.environ.get("RESFIT_DATA_DIR"))
        return [Path(place).expanduser() for place in named if place]

    @property
    def all(self) -> list[Path]:
        """All folders to search, in order."""
        return [*self.given, cache_dir()]

    @property
    def download_dir(self) -> Path:
        """The folder that downloads go to."""
        return self.data_dir.expanduser() if self.data_dir else cache_dir()

    def require_network(self, what: str) -> None:
        """Raise BadInput if downloading `what`, which was not found, is not allowed."""
        if self.offline or os.environ.get("RESFIT_OFFLINE", "").lower() not in ("", "0", "false", "no"):
            looked = ", ".join(map(str, self.all))
            raise BadInput(
                f"{what} not found, and downloads are off ({looked}): give its folder with --data-dir, or go online"
            )
