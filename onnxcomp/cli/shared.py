"""A page of memory in which the working process keeps its state for the process that watches it.

Memory, not a pipe: it never blocks the writer, it can be read at any time by several watchers, and
what was written survives the death of the writer.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

SLOT = 64 * 1024
# A counter of writes in the first byte, then two slots that are written in turn: the one that the
# lowest bit of the counter names is whole.
HEADER = 64


class State(NamedTuple):
    """What the watcher has to know about the worker.

    Attributes:
        command: The subcommand, `optimize`.
        stage: The work under way.
        stage_deadline: Monotonic time at which a stage runs out of time.
        stage_limited: The name of that stage (it may enclose `stage`) and its limit in seconds.
        deadline: Monotonic time at which the whole command runs out of time.
        time_limit: The limit in seconds that made `deadline`.
        memory_limit: Bytes of anonymous memory the worker may hold.
        verbose: Whether output of native code is passed on.
        temporaries: Paths to remove if the worker dies.
    """

    command: str = ""
    stage: str = ""
    stage_deadline: float | None = None
    stage_limited: tuple[str, float] = ("", 0.0)
    deadline: float | None = None
    time_limit: float = 0.0
    memory_limit: int | None = None
    verbose: bool = False
    temporaries: tuple[str, ...] = ()


class SharedState:
    """The page itself. Make it before forking; the worker writes, everybody reads."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, HEADER + 2 * SLOT)

    def write(self, state: State) -> None:
        """Publishes a state, in one step as seen by readers."""
        record = _encode(state)
        count = (self._memory[0] + 1) % 256
        start = HEADER + (count & 1) * SLOT
        self._memory[start : start + 4 + len(record)] = len(record).to_bytes(4, "little") + record
        self._memory[0] = count

    def read(self) -> State:
        """Returns the state published last."""
        while True:
            count = self._memory[0]
            start = HEADER + (count & 1) * SLOT
            length = int.from_bytes(self._memory[start : start + 4], "little")
            record = self._memory[start + 4 : start + 4 + length]
            if (
                self._memory[0] == count
            ):  # else the slot may have been overwritten while it was read
                return _decode(record) if record else State()


def _encode(state: State) -> bytes:
    fields = [
        state.command[:200],
        state.stage[:200],
        _number(state.stage_deadline),
        state.stage_limited[0][:200],
        repr(state.stage_limited[1]),
        _number(state.deadline),
        repr(state.time_limit),
        _number(state.memory_limit),
        "1" if state.verbose else "",
    ]
    record = b"\0".join(_bytes(field.replace("\0", " ")) for field in fields)
    for path in state.temporaries:
        # Hundreds of temporary files at once do not happen; if they do, the last ones go unwatched.
        if len(record) + len(path) * 4 < SLOT - 8:
            record += b"\0" + _bytes(path)
    return record


def _decode(record: bytes) -> State:
    fields = [field.decode("utf-8", "surrogateescape") for field in record.split(b"\0")]
    return State(
        command=fields[0],
        stage=fields[1],
        stage_deadline=float(fields[2]) if fields[2] else None,
        stage_limited=(fields[3], float(fields[4])),
        deadline=float(fields[5]) if fields[5] else None,
        time_limit=float(fields[6]),
        memory_limit=int(fields[7]) if fields[7] else None,
        verbose=bool(fields[8]),
        temporaries=tuple(fields[9:]),
    )


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
