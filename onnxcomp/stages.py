"""What is being done right now, and which files must go if it dies.

Work that may crash in native code, hang or leave a file behind announces itself here. The command
line publishes the announcements to the process that watches it; anywhere else nobody listens, and
announcing costs next to nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Stage(NamedTuple):
    """A piece of work under way.

    Attributes:
        name: What is done, in words that a message can end with: `fold-constants`, `checking the model`.
        deadline: Value of `time.monotonic()` after which the work is stopped; `None` for no limit.
        limit_seconds: The limit that made the deadline, for the message.
    """

    name: str
    deadline: float | None = None
    limit_seconds: float | None = None


class Board:
    """The announcements of this process, and who is told when they change."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.temporaries: dict[str, None] = {}
        self.listener: Callable[[], None] | None = None
        self.failed_in = ""

    def changed(self) -> None:
        """Tells the listener, if there is one."""
        if self.listener is not None:
            self.listener()


BOARD = Board()


@contextmanager
def stage(name: str, *, limit_seconds: float | None = None) -> Iterator[None]:
    """Announces a piece of work for as long as the block runs.

    Args:
        name: What is done; appears in the message when the process dies here.
        limit_seconds: Time after which the command is stopped. Only the command line enforces it.
    """
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    BOARD.stages.append(Stage(name, deadline, limit_seconds))
    if len(BOARD.stages) == 1:
        BOARD.failed_in = ""
    BOARD.changed()
    try:
        yield
    except BaseException:
        # The innermost stage is the one to name, and it is left before the error is reported.
        BOARD.failed_in = BOARD.failed_in or name
        raise
    finally:
        BOARD.stages.pop()
        BOARD.changed()


def current_stage() -> str:
    """Returns the innermost stage under way, else the one the last error came from, else nothing."""
    return BOARD.stages[-1].name if BOARD.stages else BOARD.failed_in


def nearest_deadline() -> Stage | None:
    """Returns the stage under way whose time runs out first."""
    limited = [entry for entry in BOARD.stages if entry.deadline is not None]
    return min(limited, key=lambda entry: entry.deadline or 0.0, default=None)


def register_temporary(path: str | Path) -> None:
    """Asks for a file or folder to be removed if this process dies before `forget_temporary`.

    Call it before the file is made, so that no moment is left in which it can be orphaned.
    """
    BOARD.temporaries[os.path.abspath(path)] = None  # noqa: PTH100 - must not resolve links
    BOARD.changed()


def forget_temporary(path: str | Path) -> None:
    """Withdraws `register_temporary`: the file was renamed or removed."""
    BOARD.temporaries.pop(os.path.abspath(path), None)  # noqa: PTH100 - as above
    BOARD.changed()
