"""What several test files use."""

import pytest

for name in ("documents", "kernel_checks", "killing"):  # where an assert fails, it shows its values as in a test
    pytest.register_assert_rewrite(f"{__name__}.{name}")
