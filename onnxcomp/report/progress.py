"""Progress bars on standard error, for work that takes long enough to wonder."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxcomp.passbase import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from onnxcomp.passbase import Progress, Task

# Work that is expected to end within this time gets no bar.
WORTH_SECONDS = 2.0
# Before this time there is too little to estimate from.
_ESTIMATE_AFTER = 0.3
_REDRAW_SECONDS = 0.2


def progress_for(stream: TextIO | None = None, *, quiet: bool = False) -> Progress:
    """Returns bars when somebody looks, else nothing that is ever seen.

    Args:
        stream: Where to draw, by default standard error.
        quiet: The user does not want any.
    """
    stream = stream or sys.stderr
    if quiet or stream is None or not stream.isatty():
        return QUIET
    return TerminalProgress(stream)


class TerminalProgress:
    """Shows a bar with the time left, once a piece of work turns out to take long."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: Bars | None = None
        self._lock = threading.Lock()
        self._drawn = 0.0

    @contextmanager
    def __call__(self, total: float, text: str) -> Iterator[Task]:
        """Starts a piece of work; a bar appears when it will take longer than two seconds."""
        task = _Task(self, total, text)
        timer = threading.Timer(WORTH_SECONDS, task.show)
        timer.daemon = True
        timer.start()
        try:
            yield task
        finally:
            timer.cancel()
            task.end()

    def add(self, total: float, text: str, done: float) -> tuple[Bars, TaskID]:
        """Draws a bar, below others that are there already."""
        with self._lock:
            if self._bars is None:
                self._bars = _new_bars(self._stream)
                self._bars.start()
            bars = self._bars
            number = bars.add_task(text, total=total or None, completed=int(done))
        return bars, number

    def refresh(self) -> None:
        """Redraws, a few times a second at most."""
        now = time.monotonic()
        with self._lock:
            if self._bars is not None and now - self._drawn > _REDRAW_SECONDS:
                self._drawn = now
                self._bars.refresh()

    def remove(self, bars: Bars, number: TaskID) -> None:
        """Takes a bar away; with the last one the display ends and leaves no trace."""
        with self._lock:
            bars.remove_task(number)
            if not bars.task_ids:
                bars.stop()
                self._bars = None


class _Task:
    """A piece of work, shown or not yet."""

    def __init__(self, owner: TerminalProgress, total: float, text: str) -> None:
        self.owner = owner
        self.total = total
        self.text = text
        self.done = 0.0
        self.start = time.monotonic()
        self.shown: tuple[Bars, TaskID] | None = None
        self.ended = False
        self.lock = threading.Lock()

    def advance(self, amount: float = 1) -> None:
        """Reports that `amount` of the total is done."""
        self.done += amount
        if self.shown is not None:
            bars, number = self.shown
            bars.update(number, completed=self.done)
            self.owner.refresh()
            return
        elapsed = time.monotonic() - self.start
        if elapsed > _ESTIMATE_AFTER and elapsed * self.total > WORTH_SECONDS * self.done > 0:
            self.show()

    def show(self) -> None:
        """Draws the bar, unless it is there or the work has ended (a timer may come late)."""
        with self.lock:
            if self.shown is None and not self.ended:
                self.shown = self.owner.add(self.total, self.text, self.done)

    def end(self) -> None:
        """Takes the bar away."""
        with self.lock:
            self.ended = True
            if self.shown is not None:
                self.owner.remove(*self.shown)


def _new_bars(stream: TextIO) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True),
        # Redrawn as work advances: a thread that draws would disturb the measurements it reports on.
        auto_refresh=False,
        console=Console(file=stream, markup=False, highlight=False, emoji=False),
        transient=True,
    )
