"""What the kernel says about processes and memory. Best effort: unknown is zero or `None`."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_OBJECTS_BETWEEN_COLLECTIONS = 200_000
_M_ARENA_MAX = -8  # of glibc's malloc.h
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def descendants(pid: int) -> list[int]:
    """Returns the processes started by a process, directly or not."""
    found: list[int] = []
    queue = [pid]
    while queue:
        children = [int(text) for text in _children(queue.pop())]
        found += children
        queue += children
    return found


def anonymous_memory(pid: int) -> int:
    """Returns the bytes that only a process, and those it started, hold: no files mapped."""
    total = 0
    for each in (pid, *descendants(pid)):
        fields = _read(f"/proc/{each}/statm").split()
        if len(fields) > 2:
            total += (int(fields[1]) - int(fields[2])) * _PAGE
    return total


def memory_allowance() -> int | None:
    """Returns the bytes that a command may take when the user gives no limit.

    Nine tenths of what is free now or of what the container allows: a command that needs more would
    push the machine into swapping or be killed without a word.
    """
    limits = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
    return min(limits) * 9 // 10 if limits else None


def share_heap() -> None:
    """Makes all threads of this process allocate from one heap, where the C library is glibc.

    It gives each thread a heap of its own otherwise, and what one frees no other uses again. Verifying
    a network of 9 MB takes 15 MB less that way. Not for a process that measures speed.
    """
    import ctypes

    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def collect_rarely() -> None:
    """Lets cyclic garbage lie longer: a graph is one large cycle, and looking through it takes time.

    With Python's default of 700 objects, graphs of 24,000 nodes are searched so often that passes take
    a third longer.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 100)


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody collects."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return _read(f"/proc/{pid}/stat").rpartition(") ")[2][:1] != "Z"


def kill(pid: int, *, children: bool = True) -> None:
    """Ends a process at once, and those it started."""
    for each in (*(descendants(pid) if children else ()), pid):
        try:
            os.kill(each, signal.SIGKILL)
        except OSError:
            continue


def remove(paths: Iterable[str]) -> None:
    """Removes files and folders that a dead process left, as far as possible."""
    for path in paths:
        try:
            os.unlink(path)  # noqa: PTH108 - pathlib is not worth its import here
        except (IsADirectoryError, PermissionError):
            _remove_folder(path)
        except OSError:
            continue


def _remove_folder(path: str) -> None:
    import shutil  # slow to import, and hardly ever needed

    shutil.rmtree(path, ignore_errors=True)


def _children(pid: int) -> list[str]:
    folder = f"/proc/{pid}/task"
    try:
        threads = os.listdir(folder)  # noqa: PTH208 - as above
    except OSError:
        return []
    return [child for thread in threads for child in _read(f"{folder}/{thread}/children").split()]


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return ""
