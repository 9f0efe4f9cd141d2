"""The installed version of resfit, as `__version__`."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("resfit")
except PackageNotFoundError:  # run from a source tree without installation
    __version__ = "0+unknown"
