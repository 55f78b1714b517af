"""Where is a Conv that pads by itself slower than a Pad and a Conv that does not?

    python benchmarks/bench_padding.py

One Conv in onnxruntime, one thread, twice: with its own padding, and behind a Pad that the runtime may
not fold into it. Sessions take turns; `apart` is the time with the Pad divided by the time without:
below 1 the Pad should stay. `fuse-pad` decides by what was measured here.
"""

from typing import TypeAlias

import numpy as np
from _common import (
    RESULTS,
    Row,
    interleaved_latency,
    open_session,
    parser,
    ratio,
    say,
    write_results,
)
from onnx import TensorProto, helper, numpy_helper

COLUMNS = ["kind", "channels", "input", "kernel", "strides", "group", "fused_us", "apart", "spread"]
OPSET = 17
Case: TypeAlias = tuple[str, tuple[int, int], tuple[int, ...], tuple[int, ...], int, int]


def conv(
    channels: tuple[int, int],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    strides: tuple[int, ...],
    group: int,
    apart: bool,
) -> bytes:
    """A Conv that keeps the size at stride 1, padded by itself or by a Pad."""
    random = np.random.default_rng(0)
    begins = [(extent - 1) // 2 for extent in kernel]
    ends = [extent - 1 - begin for extent, begin in zip(kernel, begins, strict=True)]
    weight = random.standard_normal((channels[1], channels[0] // group, *kernel), np.float32)
    tensors = [numpy_helper.from_array(weight * 0.05, "w")]
    if apart:
        pads = np.array([0, 0, *begins, 0, 0, *ends], np.int64)
        tensors.append(numpy_helper.from_array(pads, "p"))
        # The empty input keeps onnxruntime from folding the Pad.
        nodes = [
            helper.make_node("Pad", ["x", "p", ""], ["t"]),
            helper.make_node("Conv", ["t", "w"], ["y"], strides=strides, group=group),
        ]
        nodes[0].input[:] = ["x", "p", ""]
    else:
        nodes = [
            helper.make_node(
                "Conv", ["x", "w"], ["y"], strides=strides, group=group, pads=[*begins, *ends]
            )
        ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels[0], *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (2 + len(size)))],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def cases() -> list[Case]:
    """Kind, channels, input, kernel, stride and groups of everything that is measured."""
    found: list[Case] = []
    for channels in ((1, 32), (16, 16), (64, 64)):
        for extent in (3, 9, 33, 65):
            for height in (16, 32, 128, 512):
                found.append(("column", channels, (height, 1), (extent, 1), 1, 1))
        found.append(("column", channels, (1024, 1), (512, 1), 4, 1))
        found += [("two columns", channels, (128, 2), (extent, 1), 1, 1) for extent in (9, 33)]
        for extent in (3, 9, 17, 33, 65):
            found += [("row", channels, (1, width), (1, extent), 1, 1) for width in (64, 512)]
        for extent in (3, 5, 7, 9, 11):
            found += [
                ("square", channels, (edge, edge), (extent, extent), 1, 1) for edge in (14, 28)
            ]
            found.append(("square", channels, (56, 56), (extent, extent), 2, 1))
        for extent in (3, 9, 33, 65, 129):
            found += [("signal", channels, (length,), (extent,), 1, 1) for length in (128, 1000)]
    for extent in (3, 7, 15):
        found.append(("depthwise", (64, 64), (28, 28), (extent, extent), 1, 64))
        found.append(("depthwise", (64, 64), (512, 1), (extent, 1), 1, 64))
    return found


def main() -> None:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--rounds", type=int, default=11)
    chosen = options.parse_args()
    rows: list[Row] = []
    random = np.random.default_rng(1)
    for kind, channels, size, kernel, stride, group in cases():
        strides = tuple(stride if extent > 1 else 1 for extent in kernel)
        feeds = {"x": random.standard_normal((1, channels[0], *size), np.float32)}
        sessions = {
            name: (
                open_session(
                    conv(channels, size, kernel, strides=strides, group=group, apart=apart)
                ),
                feeds,
            )
            for name, apart in (("fused", False), ("apart", True))
        }
        times = interleaved_latency(sessions, rounds=chosen.rounds, chunk_seconds=0.01)
        apart, spread = ratio(times["apart"], times["fused"])
        rows.append(
            {
                "kind": kind,
                "channels": f"{channels[0]} to {channels[1]}",
                "input": "x".join(map(str, size)),
                "kernel": "x".join(map(str, kernel)),
                "strides": "x".join(map(str, strides)),
                "group": group,
                "fused_us": float(np.median(times["fused"])) * 1e6,
                "apart": apart,
                "spread": spread,
            }
        )
        say("  ".join(f"{name}={rows[-1][name]}" for name in COLUMNS))
    write_results(chosen.output or RESULTS / "padding.json", "Padding of a Conv", rows, COLUMNS)


if __name__ == "__main__":
    main()
