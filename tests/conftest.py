"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onnxcomp import registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another distribution with passes is installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugin"))
    registry.passes.cache_clear()
    yield
    registry.passes.cache_clear()
