"""How much memory the program may use, as far as somebody said so."""

from __future__ import annotations

from contextvars import ContextVar

# Bytes that the whole process may hold; None when nobody set a limit.
MEMORY: ContextVar[int | None] = ContextVar("MEMORY", default=None)
