"""The one place that states the version to Python."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("resfit")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"
