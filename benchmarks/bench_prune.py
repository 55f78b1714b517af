"""`onnxcomp prune channels` against Torch-Pruning and onnxsim.

    python benchmarks/bench_prune.py [--part coverage accuracy] [--zoo DIR] [--models NAME...]
                                     [--torch-python PYTHON] [--peer-python PYTHON] [--work DIR]

coverage: how many parameters go when half of the channels of everything shall go. Networks of many
families are built in torch and exported; the reference is what Torch-Pruning makes of the torch module, or
the same network written with half of its channels, whichever is smaller. Models of a zoo have no torch
module; there Torch-Pruning gets what onnx2torch makes of them.

accuracy: scores after 30 % and 50 % of the arithmetic went, without any training.

What tools wrote is kept in --work and used again, except ours; --keep-ours keeps that too. With --add the
models may be run a few at a time.
"""

import argparse
import tempfile
from pathlib import Path

from _common import RESULTS, parser
from _prune_accuracy import PEERS, VARIANTS, accuracy
from _prune_coverage import coverage

PARTS = ("coverage", "accuracy")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--torch-python", help="interpreter with torch, torch_pruning, onnx2torch")
    options.add_argument("--work", type=Path, help="keeps the models that the tools wrote")
    options.add_argument(
        "--keep-ours", action="store_true", help="do not prune again what is there"
    )
    options.add_argument("--tools", nargs="+", choices=[*VARIANTS, *PEERS], help="only these")
    options.add_argument("--add", action="store_true", help="keep results of models not run now")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument(
        "--exporters",
        nargs="+",
        choices=["dynamo", "torchscript"],
        default=["dynamo", "torchscript"],
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        chosen.work = chosen.work or Path(temporary)
        run(chosen)


def run(chosen: argparse.Namespace) -> None:
    """Runs the parts that were chosen; each writes its results as it goes."""
    base = chosen.output or RESULTS / "prune.json"
    if "coverage" in chosen.part:
        coverage(chosen, base.with_name(f"{base.stem}_coverage.json"))
    if "accuracy" in chosen.part:
        accuracy(chosen, base.with_name(f"{base.stem}_accuracy.json"))


if __name__ == "__main__":
    main()
