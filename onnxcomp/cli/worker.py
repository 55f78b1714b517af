"""The process that does the work: its side of the supervision."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from onnxcomp import stages
from onnxcomp.cli.shared import State
from onnxcomp.cli.supervise import FORWARDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.cli.shared import SharedState


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asked the command to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class Publisher:
    """Tells the watcher what this process is doing and within which limits."""

    def __init__(self, shared: SharedState) -> None:
        self.shared = shared
        self.state = State()

    def update(
        self,
        *,
        command: str | None = None,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        verbose: bool | None = None,
    ) -> None:
        """Publishes what is given; the rest stays as it is."""
        if command is not None:
            self.state = self.state._replace(command=command)
        if time_limit is not None:
            deadline = time.monotonic() + time_limit
            self.state = self.state._replace(deadline=deadline, time_limit=time_limit)
        if memory_limit is not None:
            self.state = self.state._replace(memory_limit=memory_limit)
        if verbose is not None:
            self.state = self.state._replace(verbose=verbose)
        self.publish()

    def publish(self) -> None:
        """Publishes the announcements of `stages` along with the limits."""
        limited = stages.nearest_deadline()
        self.state = self.state._replace(
            stage=stages.BOARD.stages[-1].name if stages.BOARD.stages else "",
            stage_deadline=limited.deadline if limited else None,
            stage_limited=(limited.name, limited.limit_seconds or 0.0) if limited else ("", 0.0),
            temporaries=tuple(stages.BOARD.temporaries),
        )
        self.shared.write(self.state)


def run_watched(
    work: Callable[[SharedState | None], int],
    shared: SharedState,
    native: int,
    blocked: set[int],
) -> int:
    """Does the work in this process, with errors of native code going to the watcher."""
    for name in FORWARDED:
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        _divert_native_output(native)
        return work(shared)
    except Interrupted as interrupted:
        return interrupted.exit_code
    finally:
        atexit._run_exitfuncs()


def _interrupt(number: int, _frame: object) -> NoReturn:
    # Once: what follows is clean-up, which a second Ctrl-C (the terminal sends one to each process)
    # must not cut short. Whoever is in a hurry is served by the watcher.
    for name in FORWARDED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise Interrupted(number)


def _divert_native_output(native: int) -> None:
    """Keeps the real standard error for Python; native code gets the pipe.

    onnxruntime writes warnings straight to descriptor 2, where they would drown the one line that
    matters. The watcher passes them on with `--verbose` and quotes the last one if they were the last words.
    """
    real = os.dup(2)
    os.dup2(native, 2)
    os.close(native)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stderr = os.fdopen(real, "w", encoding=encoding, errors="backslashreplace", buffering=1)
