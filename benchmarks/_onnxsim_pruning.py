"""onnxsim's structured pruning; a program, for the interpreter that has it.

    python _onnxsim_pruning.py MODEL.onnx OUT.onnx SHARE [--simplify] [--heads] [--finetune FEEDS.npz]

`--simplify` folds and fuses first, `--heads` removes whole heads too, `--finetune` fits what is left.
"""

import sys
from pathlib import Path

import onnx


def pruned(model: onnx.ModelProto, share: float, *, heads: bool) -> onnx.ModelProto:
    """Channels, and heads of attention where they are asked for."""
    import onnxsim

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    smaller = onnxsim.apply_structured_pruning(copy, sparsity=share, importance_norm="l1")
    if heads:
        smaller = onnxsim.apply_attention_head_pruning(smaller, sparsity=share)
    return smaller


def prepared(model: Path, *, simplify: bool) -> onnx.ModelProto:
    import onnxsim

    proto = onnx.load(str(model))
    return onnxsim.simplify(proto)[0] if simplify else proto


def main(arguments: list[str]) -> None:
    model, out, share, *flags = arguments
    original = prepared(Path(model), simplify="--simplify" in flags)
    smaller = pruned(original, float(share), heads="--heads" in flags)
    if "--finetune" in flags:
        import onnxsim
        from _models import read_feeds

        feeds = read_feeds(Path(flags[flags.index("--finetune") + 1]))
        smaller = onnxsim.apply_pruning_finetune(original, smaller, calibration_data=feeds)
    onnx.save(smaller, out)


if __name__ == "__main__":
    main(sys.argv[1:])
