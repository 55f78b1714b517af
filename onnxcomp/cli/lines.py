"""Single lines on standard error."""

from __future__ import annotations

import sys


def say(text: str, *, prefix: str = "") -> None:
    """Prints one line on standard error, whatever names from a model or a file are in it.

    Args:
        text: Any text; line breaks become blanks, other control characters are escaped.
        prefix: `error: ` and the like.
    """
    line = " ".join(text.split())
    safe = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    try:
        print(prefix + safe, file=sys.stderr, flush=True)
    except OSError:  # nobody listens
        return
