"""The watcher: whatever happens to the worker becomes one line, an exit code and no stray files."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from onnxcomp.cli import proc
from onnxcomp.cli.shared import SharedState, State

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PRELUDE = """
import collections, ctypes, itertools, os, signal, sys, time
from onnxcomp import stages
from onnxcomp.cli import supervise
from onnxcomp.cli.worker import Publisher

def work(shared):
    publisher = Publisher(shared)
    stages.BOARD.listener = publisher.publish
    publisher.update(command="optimize")
    def ready():
        print(os.getpid(), flush=True)
{body}
    return 0

supervise.GRACE_SECONDS = {grace}
sys.exit(supervise.supervised(work))
"""
HANG = """
with stages.stage("checking the model"):
    ready()
    while True:
        time.sleep(0.01)
"""
# A loop in C that holds the interpreter's lock and never looks at signals.
HANG_NATIVE = """
with stages.stage("checking the model"):
    ready()
    collections.deque(itertools.repeat(0), maxlen=0)
"""


def script(body: str) -> str:
    return PRELUDE.replace("{body}", textwrap.indent(textwrap.dedent(body), "    "))


def start(body: str, *, grace: float = 5, **keywords: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script(body).replace("{grace}", str(grace))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def first_number(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while proc.is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not proc.is_running(pid)


def test_passes_on_output_and_exit_code() -> None:
    code, out, err = finish(start("print('out'); print('err', file=sys.stderr); return 3"))
    assert (code, out, err) == (3, "out\n", "err\n")


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS"])
def test_death_by_signal_is_one_line_that_names_the_stage(name: str) -> None:
    code, out, err = finish(
        start(f"""
        signal.signal(signal.{name}, signal.SIG_DFL)
        with stages.stage("fold-constants"):
            os.kill(os.getpid(), signal.{name})
            time.sleep(10)
        """)
    )
    assert code == 1
    assert out == ""
    assert err.startswith(f"error: onnxcomp optimize (fold-constants) died: {name} in native code")
    assert err.count("\n") == 1


def test_a_real_crash_in_native_code_is_contained() -> None:
    code, _, err = finish(start("ctypes.string_at(0)"))
    assert code == 1
    assert "SIGSEGV" in err
    assert err.count("\n") == 1


def test_death_by_kill_is_blamed_on_memory() -> None:
    code, _, err = finish(start("os.kill(os.getpid(), signal.SIGKILL); time.sleep(10)"))
    assert code == 1
    assert (
        err == "error: onnxcomp optimize died: killed, most likely the system ran out of memory\n"
    )


def test_last_words_of_native_code_are_quoted() -> None:
    code, _, err = finish(start("os.write(2, b'terminate: bad\\x1b[31m alloc\\n'); os.abort()"))
    assert code == 1
    assert err.endswith("it last wrote terminate: bad [31m alloc\n")
    assert err.count("\n") == 1


def test_native_output_is_kept_back() -> None:
    code, _, err = finish(start("os.write(2, b'[W:onnxruntime] noise\\n' * 100_000)"))
    assert (code, err) == (0, "")


def test_native_output_is_shown_when_asked_for() -> None:
    code, _, err = finish(start("publisher.update(verbose=True); os.write(2, b'noise\\n')"))
    assert (code, err) == (0, "noise\n")


@pytest.mark.parametrize("body", [HANG, HANG_NATIVE], ids=["python", "native"])
def test_time_limit_of_the_command(body: str) -> None:
    code, _, err = finish(start("publisher.update(time_limit=0.2)" + body, grace=0.2))
    assert code == 1
    assert err == (
        "error: onnxcomp optimize (checking the model) was stopped: "
        "it took longer than 0.2 s (--time-limit)\n"
    )


def test_time_limit_of_a_stage_names_the_stage_that_is_limited() -> None:
    code, _, err = finish(
        start("""
        with stages.stage("loading", limit_seconds=0.2), stages.stage("parsing"):
            time.sleep(10)
        """)
    )
    assert code == 1
    assert err == (
        "error: onnxcomp optimize (parsing) was stopped: it took longer than the 0.2 s allowed for loading\n"
    )


def test_a_stage_that_ended_in_time_is_not_limited_any_more() -> None:
    code, _, err = finish(
        start("""
        with stages.stage("loading", limit_seconds=0.1):
            pass
        time.sleep(0.4)
        """)
    )
    assert (code, err) == (0, "")


def test_memory_limit_counts_what_the_worker_and_its_children_hold() -> None:
    code, _, err = finish(
        start("""
        publisher.update(memory_limit=300 << 20)
        with stages.stage("fold-constants"):
            if os.fork() == 0:
                held = bytearray(b"x") * (200 << 20)
                time.sleep(20)
            held = bytearray(b"x") * (200 << 20)
            time.sleep(20)
        """)
    )
    assert code == 1
    assert err.startswith("error: onnxcomp optimize (fold-constants) was stopped: it held 0.")
    assert err.endswith("GiB of memory, more than the 0.3 GiB allowed (--memory-limit)\n")


def test_memory_limit_does_not_count_mapped_files(tmp_path: Path) -> None:
    big = tmp_path / "weights"
    with big.open("wb") as file:
        file.truncate(400 << 20)
    code, _, err = finish(
        start(f"""
        import mmap
        publisher.update(memory_limit=200 << 20)
        with open({str(big)!r}, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        total = sum(view[i] for i in range(0, len(view), 4096))
        time.sleep(0.3)
        """)
    )
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_let_the_worker_tidy_up(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    mark = tmp_path / "tidy"
    process = start(f"""
    try:
        ready()
        time.sleep(20)
    finally:
        open({str(mark)!r}, "w").close()
    """)
    worker = first_number(process)
    process.send_signal(number)
    assert finish(process) == (code, "", f"{word}\n")
    assert mark.exists()
    assert ended(worker)


def test_ctrl_c_at_a_terminal_reaches_all_processes_and_interrupts_once(tmp_path: Path) -> None:
    mark = tmp_path / "tidy"
    process = start(
        f"""
        try:
            ready()
            time.sleep(20)
        finally:
            time.sleep(0.3)
            open({str(mark)!r}, "w").close()
        """,
        start_new_session=True,
    )
    first_number(process)
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process) == (130, "", "interrupted\n")
    assert mark.exists()


def test_a_second_interrupt_kills_at_once() -> None:
    process = start(HANG_NATIVE)
    worker = first_number(process)
    time.sleep(0.2)  # until it is inside the loop
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "interrupted\n")
    assert ended(worker)


@pytest.mark.parametrize("body", [HANG, HANG_NATIVE], ids=["python", "native"])
def test_a_killed_watcher_leaves_no_worker_and_no_temporary_file(body: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "half.tmp", tmp_path / "work"
    process = start(
        f"""
        stages.register_temporary({str(file)!r})
        stages.register_temporary({str(folder)!r})
        open({str(file)!r}, "w").close()
        os.mkdir({str(folder)!r})
        open({str(folder / "part")!r}, "w").close()
        """
        + textwrap.indent(body, "        ")
    )
    worker = first_number(process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert ended(worker)
    deadline = time.monotonic() + 5
    while any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_a_crashed_worker_are_removed_others_are_not(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    finish(
        start(f"""
        for name in ("gone", "kept"):
            path = os.path.join({str(tmp_path)!r}, name)
            stages.register_temporary(path)
            open(path, "w").close()
        stages.forget_temporary(path)
        os.abort()
        """)
    )
    assert list(tmp_path.iterdir()) == [kept]


def test_children_of_a_stopped_worker_end_too() -> None:
    process = start("""
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    publisher.update(memory_limit=1)
    time.sleep(60)
    """)
    code, out, _ = finish(process)
    assert code == 1
    assert ended(int(out))


def test_closed_standard_error_is_survived() -> None:
    command = f'exec "{sys.executable}" -c "$SCRIPT" 2>&-'
    environment = {**os.environ, "SCRIPT": script("print('done')").replace("{grace}", "5")}
    found = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "done\n")


def test_in_process_when_asked() -> None:
    environment = {**os.environ, "ONNXCOMP_NO_SUPERVISOR": "1"}
    text = "import os, sys\nfrom onnxcomp.cli.supervise import supervised\npid = os.getpid()\n"
    text += "sys.exit(supervised(lambda shared: 7 if shared is None and os.getpid() == pid else 1))"
    found = subprocess.run([sys.executable, "-c", text], env=environment, check=False)
    assert found.returncode == 7


def test_shared_state_keeps_every_field() -> None:
    shared = SharedState()
    assert shared.read() == State()
    state = State(
        command="quantize static",
        stage="größer\n",
        stage_deadline=1.5,
        stage_limited=("x", 2.0),
        deadline=None,
        time_limit=3.0,
        memory_limit=1 << 40,
        verbose=True,
        temporaries=("/tmp/a b", "/tmp/\udcff"),
    )
    shared.write(State(command="old"))
    shared.write(state)
    assert shared.read() == state


def test_shared_state_survives_too_many_names() -> None:
    shared = SharedState()
    paths = tuple(f"/tmp/{'x' * 4000}{index}" for index in range(100))
    shared.write(State(command="run", temporaries=paths))
    found = shared.read()
    assert found.command == "run"
    assert found.temporaries == paths[: len(found.temporaries)]
    assert len(found.temporaries) > 3


def test_memory_allowance_is_within_what_there_is() -> None:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowance = proc.memory_allowance()
    assert allowance is None or 0 < allowance < installed
