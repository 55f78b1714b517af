"""Numbers as people read them, in plain ASCII."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.report.record import Spread

MISSING = "-"


def size(count: float | None) -> str:
    """Returns bytes as `512 B`, `9.9 MB`, `1.64 GB`."""
    return MISSING if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def number(count: float | None) -> str:
    """Returns a count as `512`, `9.9 M`, `1.64 G`."""
    return MISSING if count is None else _scaled(count, ("", "k", "M", "G", "T", "P")).strip()


def _scaled(value: float, names: tuple[str, ...]) -> str:
    if abs(value) < 1000:
        return f"{value:.0f} {names[0]}"
    for name in names[1:]:
        value /= 1000
        # 999.95 would print as 1000.
        if abs(value) < 999.5 or name == names[-1]:
            break
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {name}"


def duration(seconds: float | None) -> str:
    """Returns a time as `41.2 us`, `3.21 ms`, `12.3 s`, `2 min 05 s`."""
    if seconds is None:
        return MISSING
    if seconds >= 120:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds)} s"


def _three(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def latency(spread: Spread | None) -> str:
    """Returns the median of a measured time."""
    return MISSING if spread is None else duration(spread.median)


def ratio(spread: Spread | None) -> str:
    """Returns a factor with its interval: `1.83x (1.80-1.86)`."""
    if spread is None:
        return MISSING
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"


def metric(value: float | None) -> str:
    """Returns a score with four significant digits."""
    return MISSING if value is None else f"{value:.4g}"


def factor(value: float | None) -> str:
    """Returns a factor: `1.83x`."""
    return MISSING if value is None else f"{value:.2f}x"


def change(value: float | None) -> str:
    """Returns what was added, with its sign: `-0.0021`."""
    return MISSING if value is None else f"{value:+.2g}"
