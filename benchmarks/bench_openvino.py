"""Models quantized for OpenVINO, run by onnxruntime's OpenVINO provider, against float and NNCF.

    python benchmarks/bench_openvino.py --openvino-python PYTHON [--zoo DIR] [--models NAME...]
                                        [--peer-python PYTHON] [--rounds 41]

`--openvino-python` has onnxruntime-openvino (which cannot live beside onnxruntime) and numpy. The same
calibration data goes to every tool; all models of a bundle take turns in one process on one thread.
`cpu_form` is what we write for onnxruntime's own provider, to see what the difference is worth.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import (
    RESULTS,
    Feeds,
    Row,
    interleaved_latency,
    onnxcomp_command,
    parser,
    ratio,
    run_child,
    run_session,
    say,
    write_results,
)
from _models import Bundle, chosen_bundles, fidelity
from _peers import interpreters, quantize, quantizers_for

COLUMNS = ["model", "variant", "ratio", "spread", "sqnr_db", "metric", "value", "megabytes", "note"]
OURS = {"openvino": "openvino", "cpu_form": "cpu"}
MODELS = ("mobilenetv2", "efficientnet_lite0", "minilm", "ppocr_det", "ppocr_rec", "crepe_tiny")
TIMEOUT = 1800.0


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--openvino-python", required=True)
    options.add_argument("--rounds", type=int, default=41)
    chosen = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for bundle in chosen_bundles(chosen.zoo, chosen.models or MODELS, folder):
            rows += compared(bundle, folder, chosen)
            output = chosen.output or RESULTS / "openvino.json"
            write_results(output, "Quantized for OpenVINO", rows, COLUMNS, notes=[__doc__ or ""])


def compared(bundle: Bundle, folder: Path, chosen: argparse.Namespace) -> list[Row]:
    """One row for each variant that there is."""
    made, notes = variants(bundle, folder, chosen)
    job = folder / f"{bundle.name}.json"
    job.write_text(
        json.dumps(
            {
                "models": {key: str(path) for key, path in made.items()},
                "bundle": [
                    bundle.name,
                    *map(str, (bundle.model, bundle.calibration, bundle.evaluation)),
                    bundle.batch,
                    bundle.primary,
                    None if bundle.metric is None else str(bundle.metric),
                ],
                "rounds": chosen.rounds,
            }
        )
    )
    python = chosen.openvino_python
    child = run_child([python, Path(__file__), "--measure", job], timeout=TIMEOUT)
    found = json.loads(child.stdout.splitlines()[-1]) if child.returncode == 0 else {}
    if child.returncode:
        say(child.stderr[-500:])
    rows: list[Row] = []
    for key in [*made, *(set(notes) - set(made))]:
        size = made[key].stat().st_size / 1e6 if key in made else None
        row = {"model": bundle.name, "variant": key, "megabytes": size, "note": notes.get(key, "")}
        rows.append({**row, **found.get(key, {})})
        say(str(rows[-1]))
    return rows


def variants(
    bundle: Bundle, folder: Path, chosen: argparse.Namespace
) -> tuple[dict[str, Path], dict[str, str]]:
    """Models by variant, and what is to be said about a variant."""
    made, notes = {"float": bundle.model}, {}
    for key, target in OURS.items():
        out = folder / f"{bundle.name}-{key}.onnx"
        command = onnxcomp_command(chosen.python, "quantize", "static", bundle.model, "-o", out)
        command += ["--data", bundle.calibration, "--target", target, "--placement", "all"]
        child = run_child(command, timeout=TIMEOUT)
        if child.returncode == 0 and out.exists():
            made[key] = out
        else:
            notes[key] = child.reason
    peers = interpreters([chosen.peer_python])
    for peer in quantizers_for(bundle.model):
        if not peer.startswith("nncf") or "nncf" not in peers:
            continue
        out = folder / f"{bundle.name}-{peer}.onnx"
        done = quantize(peers["nncf"][0], peer, bundle.model, bundle.calibration, out)
        if done.failure or not out.exists():
            notes[peer] = done.failure or "wrote nothing"
        else:
            made[peer] = out
    return made, notes


# ---------------------------------------------------------------- in the interpreter with OpenVINO


def measure(job: Path) -> None:
    """Prints what all models of a job score, as JSON."""
    asked = json.loads(job.read_text())
    name, model, calibration, evaluation, batch, primary, metric = asked["bundle"]
    paths = (Path(model), Path(calibration), Path(evaluation))
    place = None if metric is None else Path(metric)
    bundle = Bundle(name, *paths, batch, primary, place)
    sessions = {key: openvino_session(path) for key, path in asked["models"].items()}
    times = interleaved_latency(
        {key: (session, bundle.timed_feeds) for key, session in sessions.items()},
        rounds=asked["rounds"],
    )
    reference = [run_session(sessions["float"], feeds) for feeds in bundle.feeds]
    found = {}
    for key, session in sessions.items():
        outputs = [run_session(session, feeds) for feeds in bundle.feeds]
        middle, spread = ratio(times[key], times["float"])
        found[key] = {
            "ratio": middle,
            "spread": spread,
            "sqnr_db": fidelity(outputs, reference)["sqnr_db"],
            "metric": primary,
            "value": scored(bundle, outputs, reference),
        }
    sys.stdout.write(json.dumps(found) + "\n")


def scored(bundle: Bundle, outputs: Sequence[Feeds], reference: Sequence[Feeds]) -> float:
    """The bundle's main score; fidelity is held against float on the same provider."""
    if bundle.metric is None:
        return fidelity(outputs, reference).get(bundle.primary, float("nan"))
    return float(np.float64(bundle.score(outputs)[bundle.primary]))


def openvino_session(model: str) -> object:
    """A session of the OpenVINO provider on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    where = {"device_type": "CPU", "num_of_threads": "1"}
    providers = [("OpenVINOExecutionProvider", where)]
    return onnxruntime.InferenceSession(model, sess_options=options, providers=providers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
    else:
        main()
