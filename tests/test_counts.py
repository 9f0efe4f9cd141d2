"""Counts are read and written as people do, and what could mean two numbers is refused."""

from __future__ import annotations

import pytest

from resfit.counts import parse_count, short_count
from resfit.errors import BadInput


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5000000", 5_000_000),
        ("5_000_000", 5_000_000),
        ("5,000,001", 5_000_001),
        ("5M", 5_000_000),
        (" 2.5m ", 2_500_000),
        ("500k", 500_000),
        ("0.3K", 300),
        ("1e6", 1_000_000),
        ("2,500k", 2_500_000),
        ("1B", 1_000_000_000),
        ("1.5g", 1_500_000_000),
    ],
)
def test_a_budget_is_read_as_people_write_it(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [(5_000_000, "5M"), (2_500_000, "2.5M"), (985_000, "985k"), (1_234_567, "1234567"), (999, "999"), (1_500, "1.5k")],
)
def test_a_budget_is_written_as_people_do(count, text):
    assert short_count(count) == text
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "much", "0", "-5M", "nan", "inf", "5MM", "1e999", "2,5M", "5,00", ",5"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(BadInput, match="--budget"):
        parse_count(text)
