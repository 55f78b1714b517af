"""onnxsim's structured pruning; a program, for the interpreter that has it.

    python _onnxsim_pruning.py MODEL.onnx OUT.onnx SHARE [--simplify] [--heads]
                               [--calibrate DATA.npz] [--feeds FEEDS.npz]

`--simplify` folds and fuses first if the goal is as near then, `--heads` removes whole heads too, `--calibrate` ranks by Wanda and fits
what is left. With `--feeds`, SHARE is that of the arithmetic to remove and the sparsity is looked for,
otherwise it is the sparsity.
"""

import sys
from pathlib import Path

import onnx
import onnxsim
from _common import Feeds
from _counting import count_arithmetic
from _models import read_feeds

STEPS = 9
SAMPLES = 32


def pruned(
    model: onnx.ModelProto,
    share: float,
    *,
    heads: bool,
    data: list[Feeds] | None,
    finetune: bool = True,
) -> onnx.ModelProto:
    """Channels, and heads of attention where they are asked for."""
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    finished: onnx.ModelProto
    if data is None:
        smaller = onnxsim.apply_structured_pruning(smaller, sparsity=share, importance_norm="l1")
        if heads:
            smaller = onnxsim.apply_attention_head_pruning(smaller, sparsity=share)
        finished = smaller
        return finished
    smaller = onnxsim.apply_structured_wanda_pruning(smaller, calibration_data=data, sparsity=share)
    if heads:
        smaller = onnxsim.apply_attention_head_wanda_pruning(
            smaller, calibration_data=data, sparsity=share
        )
    finished = smaller
    if finetune:
        finished = onnxsim.apply_pruning_finetune(model, smaller, calibration_data=data)
    return finished


def at_share(
    model: onnx.ModelProto,
    goal: float,
    feeds: Feeds,
    out: Path,
    *,
    heads: bool,
    data: list[Feeds] | None,
) -> tuple[float, float]:
    """The sparsity that removes this share of the arithmetic, as near as halving comes, and the share."""

    def left(sparsity: float | None) -> float:
        found = model
        if sparsity is not None:
            found = pruned(model, sparsity, heads=heads, data=data, finetune=False)
        onnx.save(found, str(out))
        return count_arithmetic(out, feeds)

    whole = left(None)
    low, high, best = 0.0, 1.0, (0.5, 0.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        gone = 1 - left(middle) / whole
        if abs(gone - goal) < abs(best[1] - goal):
            best = (middle, gone)
        low, high = (low, middle) if gone >= goal else (middle, high)
    return best


def main(arguments: list[str]) -> None:
    model, out, share, *flags = arguments
    named = {
        flag: flags[flags.index(flag) + 1] for flag in ("--calibrate", "--feeds") if flag in flags
    }
    original = onnx.load(model)
    forms = [onnxsim.simplify(original)[0]] if "--simplify" in flags else []
    heads, chosen, sparsity = "--heads" in flags, [*forms, original][0], float(share)
    data = read_feeds(Path(named["--calibrate"]))[:SAMPLES] if "--calibrate" in named else None
    if "--feeds" in named:
        # How much goes does not depend on the samples.
        one = None if data is None else data[:1]
        feeds = read_feeds(Path(named["--feeds"]))[0]
        least = float("inf")
        for form in (*forms, original):
            found, gone = at_share(form, float(share), feeds, Path(out), heads=heads, data=one)
            if abs(gone - float(share)) < least - 0.01:
                chosen, sparsity, least = form, found, abs(gone - float(share))
    onnx.save(pruned(chosen, sparsity, heads=heads, data=data), out)


if __name__ == "__main__":
    main(sys.argv[1:])
