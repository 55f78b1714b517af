"""Progress bars: only for work that takes long, and only where somebody looks."""

import io
import threading
import time

import pytest
from typing_extensions import override

from onnxcomp.passbase import QUIET
from onnxcomp.report import progress
from onnxcomp.report.progress import TerminalProgress, progress_for


class Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


class Clock:
    """Time that passes only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.timers: list[threading.Timer] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

        def timer(seconds: float, call: object) -> threading.Timer:
            made = threading.Timer(1000, call)  # type: ignore[arg-type]
            self.timers.append(made)
            assert seconds == progress.WORTH_SECONDS
            return made

        monkeypatch.setattr(progress, "threading", Threads(timer))


class Threads:
    Lock = staticmethod(threading.Lock)

    def __init__(self, timer: object) -> None:
        self.Timer = timer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_quiet_where_nobody_looks(terminal: Terminal) -> None:
    assert progress_for(terminal, quiet=True) is QUIET
    assert isinstance(progress_for(terminal), TerminalProgress)
    assert progress_for(io.StringIO()) is QUIET


def test_short_work_gets_no_bar(terminal: Terminal, clock: Clock) -> None:
    with TerminalProgress(terminal)(10, "folding") as task:
        for _ in range(10):
            clock.now += 0.1
            task.advance()
    assert terminal.getvalue() == ""


def test_work_expected_to_take_long_gets_a_bar_soon(terminal: Terminal, clock: Clock) -> None:
    with TerminalProgress(terminal)(100, "folding [x]") as task:
        for _ in range(10):
            clock.now += 0.1
            task.advance()
    assert "folding [x]" in terminal.getvalue()
    assert "%" in terminal.getvalue()


def test_work_that_does_not_advance_gets_a_bar_in_time(terminal: Terminal, clock: Clock) -> None:
    with TerminalProgress(terminal)(1, "loading"):
        (timer,) = clock.timers
        timer.function()
    assert "loading" in terminal.getvalue()


def test_a_late_timer_draws_nothing(terminal: Terminal, clock: Clock) -> None:
    with TerminalProgress(terminal)(1, "loading"):
        pass
    clock.timers[0].function()
    assert terminal.getvalue() == ""


def test_bars_nest_and_go_away(terminal: Terminal, clock: Clock) -> None:
    bars = TerminalProgress(terminal)
    with bars(1, "outer"):
        clock.timers[0].function()
        with bars(1, "inner"):
            clock.timers[1].function()
    assert "inner" in terminal.getvalue()
    with bars(1, "again"):
        clock.timers[2].function()
    assert "again" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A\x1b[2K"))


def test_the_bar_ends_with_an_error(terminal: Terminal, clock: Clock) -> None:
    bars = TerminalProgress(terminal)

    def work() -> None:
        with bars(1, "outer"):
            clock.timers[0].function()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "\x1b[?25h" in terminal.getvalue()
