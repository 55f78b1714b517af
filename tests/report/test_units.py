"""Numbers as people read them."""

import pytest

from onnxcomp.report import Spread, units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_990, "9.99 kB"),
        (9_999, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (1_640_000_000, "1.64 GB"),
        (5e18, "5000 PB"),
        (None, "-"),
    ],
)
def test_size(count: float | None, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (1_234, "1.23 k"), (4.7e9, "4.70 G")])
def test_number(count: float, text: str) -> None:
    assert units.number(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000412, "41.2 us"),
        (0.00321, "3.21 ms"),
        (0.5, "500 ms"),
        (12.34, "12.3 s"),
        (119, "119 s"),
        (125, "2 min 05 s"),
        (None, "-"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


def test_ratio_shows_its_interval() -> None:
    assert units.ratio(Spread(1.834, 1.8, 1.86)) == "1.83x (1.80-1.86)"
    assert units.ratio(None) == "-"
