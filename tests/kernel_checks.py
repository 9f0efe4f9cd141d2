"""What the tests of the kernels share."""

from __future__ import annotations

import pytest
from torch import Tensor

from resfit import kernels
from resfit.kernels.library import load_library
from resfit.processor import processor


def needs(kernel: str) -> pytest.MarkDecorator:
    """A mark that skips a test where the kernel cannot run: whether it would be faster than torch does not matter."""
    feature, _ = kernels.NEEDS[kernel]
    runs = feature in processor()[1] and load_library(kernel) is not None
    return pytest.mark.skipif(not runs, reason=f"needs {feature} and a C++ compiler")


def difference(found: Tensor, wanted: Tensor) -> float:
    """Of two tensors, relative to the second: the ratio of root mean squares."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()
