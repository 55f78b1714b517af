"""Runs the command in a child process and watches it.

Native code can die of a signal, hang, or fill the memory, whatever Python around it does. So the
process that the user started does nothing but watch: it forks before anything large is imported,
and turns whatever happens to the child into one line, an exit code and no stray files.

There are three processes: the *watcher* (the one the user sees), the *worker* (does everything)
and the *janitor*, which sleeps until the watcher is gone and acts only when the watcher was killed
outright: it ends the worker and removes its temporary files.

The memory limit counts anonymous memory, what the kernel cannot take back. Memory-mapped weights
are not counted: they are given back under pressure, and a 10 GB model may well be mapped whole.
For the same reason RLIMIT_AS, which counts mappings, is of no use here.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from onnxcomp.cli import proc
from onnxcomp.cli.shared import SharedState, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Work = Callable[[SharedState | None], int]

IN_PROCESS = "ONNXCOMP_NO_SUPERVISOR"
POLL_SECONDS = 0.1
# Time the worker gets to tidy up after Ctrl-C before it is killed. A second Ctrl-C kills at once.
GRACE_SECONDS = 5.0
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
# How much of what native code wrote is kept, for the message when it dies.
TAIL_BYTES = 4096
MEANINGS = {
    "SIGFPE": "an integer division that the processor refuses",
    "SIGSEGV": "a memory access that is not allowed",
    "SIGBUS": "a mapped file that shrank, or a memory access that is not allowed",
    "SIGABRT": "it gave up",
    "SIGILL": "an instruction that this processor does not have",
    "SIGKILL": "most likely the system ran out of memory",
}


def supervised(work: Work) -> int:
    """Runs `work` in a watched child process and returns the exit code of the command.

    With `--debug` or `ONNXCOMP_NO_SUPERVISOR=1` it runs right here.

    Args:
        work: Does the command. Gets the page to publish its state on, `None` when nobody watches.
    """
    if os.environ.get(IN_PROCESS) or "--debug" in sys.argv[1:]:
        return work(None)
    if not hasattr(os, "fork"):
        return _in_subprocess()
    _fill_standard_descriptors()
    return Watcher(work).run()


def _fill_standard_descriptors() -> None:
    """Opens what the caller closed (`2>&-`), lest a pipe of ours becomes standard error."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        continue
    os.close(descriptor)


class Watcher:
    """The process that the user started."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.shared = SharedState()
        self.worker = 0
        self.janitor = 0
        self.status: int | None = None
        self.tail = b""
        self.interrupted_by = 0
        self.verdict = ""
        self.doing = ""
        self.kill_at: float | None = None
        self.allowance = proc.memory_allowance()

    def run(self) -> int:
        """Starts the worker, waits for its end and says what happened to it."""
        signals = {getattr(signal, name) for name in FORWARDED}
        # Held back until both sides have their handlers: a signal in between must not be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        native, native_writer = os.pipe()
        life, life_writer = os.pipe()
        try:
            self.worker = os.fork()
        except OSError:  # no more processes allowed: better unwatched than not at all
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return self.work(None)
        if self.worker == 0:
            _close((native, life, life_writer))
            _be_worker(self.work, self.shared, native_writer, signals)
        os.close(native_writer)
        self._start_janitor(life, (native, life_writer))
        wake = self._listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        self._watch(native, wake)
        os.write(life_writer, b"done")
        os.close(life_writer)
        if self.janitor:
            os.waitpid(self.janitor, 0)
        return self._conclude()

    def _start_janitor(self, life: int, others: Iterable[int]) -> None:
        try:
            self.janitor = os.fork()
        except OSError:
            self.janitor = 0
        else:
            if self.janitor == 0:
                _close(others)
                _be_janitor(self.shared, self.worker, life)
        os.close(life)

    def _listen(self) -> int:
        """Lets signals wake the loop; returns the file descriptor that becomes readable."""
        wake, writer = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for name in FORWARDED:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored by nohup: leave it so
                signal.signal(number, self._on_signal)
        return wake

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.interrupted_by:
            self._kill()
            return
        self.interrupted_by = number
        self._ask_to_stop(number)

    def _ask_to_stop(self, number: int) -> None:
        self.kill_at = time.monotonic() + GRACE_SECONDS
        try:
            os.kill(self.worker, number)
        except OSError:
            return

    def _kill(self) -> None:
        self.kill_at = None
        if self.status is None:
            proc.kill(self.worker)

    def _watch(self, native: int, wake: int) -> None:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(native, select.POLLIN)
        while self.status is None:
            for descriptor, _ in poll.poll(POLL_SECONDS * 1000):
                data = os.read(descriptor, 65536)
                if descriptor == native:
                    self._native_output(data)
                    if not data:
                        poll.unregister(native)
            self._reap()
            if self.status is None:
                self._enforce(self.shared.read())
        self._drain(native)

    def _reap(self) -> None:
        pid, status = os.waitpid(self.worker, os.WNOHANG)
        if pid:
            self.status = status

    def _drain(self, native: int) -> None:
        """Reads what is left in the pipe, without waiting for processes that hold it open."""
        os.set_blocking(native, False)
        try:
            while data := os.read(native, 65536):
                self._native_output(data)
        except BlockingIOError:
            return

    def _native_output(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        if self.shared.read().verbose:
            _write(data)

    def _enforce(self, state: State) -> None:
        now = time.monotonic()
        if not self.verdict and not self.interrupted_by:
            self.doing = _doing(state)
        if self.kill_at is not None:
            if now > self.kill_at:
                self._kill()
        elif self.verdict:
            return
        elif state.deadline is not None and now > state.deadline:
            self.verdict = f"took longer than {state.time_limit:g} s (--time-limit)"
            self._ask_to_stop(signal.SIGTERM)
        elif state.stage_deadline is not None and now > state.stage_deadline:
            stage, limit = state.stage_limited
            self.verdict = f"took longer than the {limit:g} s allowed for {stage}"
            self._ask_to_stop(signal.SIGTERM)
        else:
            self._enforce_memory(state.memory_limit or self.allowance)

    def _enforce_memory(self, limit: int | None) -> None:
        if limit is None or (used := proc.anonymous_memory(self.worker)) <= limit:
            return
        self.verdict = (
            f"held {used / 2**30:.1f} GiB of memory, more than the {limit / 2**30:.1f} GiB allowed "
            "(--memory-limit)"
        )
        self._kill()

    def _conclude(self) -> int:
        """Clears up after the worker and returns the exit code."""
        assert self.status is not None
        state = self.shared.read()
        proc.remove(state.temporaries)
        died_of = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        if self.verdict or self.interrupted_by or died_of:
            _restore_terminal()
        if self.verdict:
            _say(f"error: {self.doing} was stopped: it {self.verdict}")
            return 1
        if self.interrupted_by and self.status != 0:
            _say("interrupted" if self.interrupted_by == signal.SIGINT else "terminated")
            return 128 + self.interrupted_by
        if died_of:
            _say(f"error: {_doing(state)} died: {self._cause(died_of)}")
            return 1
        return os.WEXITSTATUS(self.status)

    def _cause(self, number: int) -> str:
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
        lines = self.tail.decode("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        meaning = f"{name} in native code, {MEANINGS[name]}" if name in MEANINGS else name
        if name == "SIGKILL":
            meaning = f"killed, {MEANINGS[name]}"
        return f"{meaning}; it last wrote {_printable(last)}" if last else meaning


def _be_worker(work: Work, shared: SharedState, native: int, signals: set[int]) -> NoReturn:
    """The rest of the life of the worker."""
    code = 1
    try:
        from onnxcomp.cli.worker import run_watched

        code = run_watched(work, shared, native, signals)
    finally:
        # The interpreter is not taken down: destructors of native libraries cost time, and have crashed.
        os._exit(code)


def _be_janitor(shared: SharedState, worker: int, life: int) -> NoReturn:
    """Sleeps until the watcher ends; clears up when it did not end by itself."""
    try:
        for name in FORWARDED:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        # Nobody may wait for this process to close their pipe.
        _close((0, 1, 2))
        if os.read(life, 16) == b"":
            proc.kill(worker)
            deadline = time.monotonic() + 2.0
            while proc.is_running(worker) and time.monotonic() < deadline:
                time.sleep(0.01)
            proc.remove(shared.read().temporaries)
    finally:
        os._exit(0)


def _in_subprocess() -> int:
    """Where processes cannot fork: the same command again, in a child that is only waited for."""
    import subprocess

    environment = {**os.environ, IN_PROCESS: "1"}
    command = [sys.executable, "-m", "onnxcomp.cli.main", *sys.argv[1:]]
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
    if code < 0 or code > 255:
        _say(f"error: onnxcomp died in native code (status {code & 0xFFFFFFFF:#x})")
        return 1
    return code


def _doing(state: State) -> str:
    command = f"onnxcomp {state.command}".strip()
    return f"{command} ({state.stage})" if state.stage else command


def _restore_terminal() -> None:
    """Wipes a half-drawn progress bar and brings back the cursor."""
    if os.isatty(2):
        _write(b"\r\x1b[K\x1b[?25h")


def _say(text: str) -> None:
    _write(_printable(text, limit=2000).encode("ascii", "backslashreplace") + b"\n")


def _printable(text: str, limit: int = 200) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text.strip())[:limit]


def _write(data: bytes) -> None:
    try:
        os.write(2, data)
    except OSError:
        return


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
