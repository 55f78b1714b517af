"""What `import onnxcomp` costs on top of what every user imports anyway, and `onnxcomp --version`.

python benchmarks/bench_import.py [--rounds 15]
"""

import json
import statistics

from _common import (
    RESULTS,
    Row,
    interleave,
    onnxcomp_command,
    parser,
    run_child,
    say,
    write_results,
)

BASE = "import onnx, onnxruntime"
HEAVY = ("torch", "tensorflow", "sympy", "onnx_graphsurgeon", "PIL", "pandas", "scipy")


def main() -> None:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--rounds", type=int, default=15)
    chosen = options.parse_args()
    commands = {
        "python -c pass": [chosen.python, "-c", "pass"],
        BASE: [chosen.python, "-c", BASE],
        f"{BASE}, onnxcomp": [chosen.python, "-c", f"{BASE}, onnxcomp"],
        "import onnxcomp": [chosen.python, "-c", "import onnxcomp"],
        "onnxcomp --version": onnxcomp_command(chosen.python, "--version"),
        "onnxcomp --help": onnxcomp_command(chosen.python, "--help"),
    }
    interleave(commands, 1)  # compiles bytecode
    done = interleave(commands, chosen.rounds)
    rows: list[Row] = []
    for name, runs in done.items():
        good = [run.seconds for run in runs if run.returncode == 0]
        rows.append(
            {
                "what": name,
                "median_s": statistics.median(good) if good else None,
                "min_s": min(good, default=None),
                "note": runs[-1].reason if runs[-1].returncode else "",
            }
        )
    seconds = {row["what"]: row["median_s"] for row in rows}
    if seconds[f"{BASE}, onnxcomp"]:
        added = [
            a.seconds - b.seconds
            for a, b in zip(done[f"{BASE}, onnxcomp"], done[BASE], strict=True)
        ]
        rows.append({"what": "added by onnxcomp", "median_s": statistics.median(added)})
    notes = [f"heavy packages that `import onnxcomp` loads: {_heavy(chosen.python) or 'none'}"]
    write_results(
        chosen.output or RESULTS / "import.json",
        "Import time",
        rows,
        ["what", "median_s", "min_s", "note"],
        notes=notes,
    )
    say("\n".join(f"{row['what']}: {row['median_s']}" for row in rows) + "\n" + notes[0])


def _heavy(python: str) -> str:
    child = run_child(
        [python, "-c", "import onnxcomp, sys, json; print(json.dumps(list(sys.modules)))"]
    )
    if child.returncode:
        return child.reason
    loaded = set(json.loads(child.stdout))
    return ", ".join(name for name in HEAVY if name in loaded)


if __name__ == "__main__":
    main()
