"""Torch-Pruning, and what it needs around it; a program, for the interpreter that has torch.

    python _torch_pruning.py list
    python _torch_pruning.py families JOBS.json
    python _torch_pruning.py model FEEDS.npz ratio|flops SHARE OUT.onnx MODEL.onnx...
    python _torch_pruning.py twin NAME all|inner FEEDS.npz ratio|flops SHARE OUT.onnx MODEL.onnx

A job is {family, exporter, out, inner, stream} for the network with these shares of its channels, or
{family, exporter, out, ratio, normalized} for what Torch-Pruning makes of it. Beside each result a record
is written of whether it went well. Of several MODELs, forms of the same one, the first is taken that
onnx2torch converts. A twin is a torch module that somebody wrote for the model.
"""

import contextlib
import copy
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx2torch
import torch
import torch_pruning
from _architectures import FAMILIES, Family, Share, build
from _common import Feeds
from _models import read_feeds
from _twins import Twin, twin
from torch import nn

OPSET = 18
Inputs: TypeAlias = tuple[torch.Tensor, ...]
STEPS = 9


def export(
    module: nn.Module, inputs: tuple[Any, ...], exporter: str, out: Path, **options: Any
) -> None:
    """Writes one self-contained file."""
    if exporter == "torchscript":
        options |= {"do_constant_folding": True}
    torch.onnx.export(
        module,
        inputs,
        str(out),
        opset_version=OPSET,
        dynamo=exporter == "dynamo",
        external_data=False,
        **options,
    )


def export_family(family: Family, exporter: str, out: Path) -> None:
    """As a user would; what must not be folded is not."""
    options: dict[str, Any] = {}
    if not family.folded and exporter == "torchscript":
        options["training"] = torch.onnx.TrainingMode.PRESERVE
    if not family.folded and exporter == "dynamo":
        options["optimize"] = False
    export(family.module, (family.example,), exporter, out, **options)


def pruned(family: Family | Twin, ratio: float, everything: bool) -> None:
    """Prunes as the documentation shows: L1 norms, the last layer and the heads named."""
    ignored = [*family.final, *([] if everything else family.stream)]
    torch_pruning.pruner.MagnitudePruner(
        family.module,
        example_inputs=family.example,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        num_heads=dict(family.heads),
        unwrapped_parameters=list(family.free),
        root_module_types=[nn.modules.conv._ConvNd, nn.Linear, nn.LSTM, nn.Embedding],
    ).step()


# ---------------------------------------------------------------- models without torch code


def converted(models: list[str]) -> tuple[nn.Module, onnx.ModelProto]:
    """The first form of a model that onnx2torch understands, as it is or in an older opset."""
    problems = []
    for model in models:
        for form in (onnx.load, lowered):
            try:
                proto = form(model)
                return with_prelu(onnx2torch.convert(proto).eval()), proto
            except Exception as error:  # noqa: BLE001  (it refuses in many ways)
                problems.append(f"{type(error).__name__}: {str(error)[:90]}")
    raise SystemExit(f"onnx2torch: {problems[-1]}")


def with_prelu(module: nn.Module) -> nn.Module:
    """torch's own PReLU, which Torch-Pruning knows, in place of onnx2torch's."""
    modules = dict(module.named_modules())
    for node in module.graph.nodes:
        found = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(found).__name__ == "OnnxPReLU" and node.args[1].op == "get_attr":
            slope = module
            for part in node.args[1].target.split("."):
                slope = getattr(slope, part)
            layer = nn.PReLU(slope.numel())
            layer.weight.data = slope.detach().reshape(-1)
            module.set_submodule(node.target, layer)
            node.args = node.args[:1]
    module.recompile()
    return module


def lowered(model: str) -> onnx.ModelProto:
    """In opset 17, if nothing newer is used but the spelling of axes; padding spelled out."""
    proto = onnx.load(model)
    known = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if (
            node.op_type.startswith("Reduce")
            and node.op_type != "ReduceSum"
            and len(node.input) > 1
        ):
            axes = onnx.numpy_helper.to_array(known[node.input.pop()]).tolist()
            _set(node, "noop_with_empty_axes")
            _set(node, "axes", axes)
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        steps = {*given.get("strides", [1]), *given.get("dilations", [1])}
        if given.get("auto_pad") == b"SAME_UPPER" and steps == {1}:
            sizes = given.get("kernel_shape") or known[node.input[1]].dims[2:]
            before, after = [(k - 1) // 2 for k in sizes], [k // 2 for k in sizes]
            _set(node, "auto_pad")
            _set(node, "pads", before + after)
    for item in proto.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = min(item.version, 17)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _set(node: onnx.NodeProto, name: str, numbers: list[int] | None = None) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if numbers is not None:
        node.attribute.append(onnx.helper.make_attribute(name, numbers))


def final_layers(module: nn.Module) -> list[nn.Module]:
    """Layers whose channels reach an output without another layer between."""
    found: list[nn.Module] = []
    modules = dict(module.named_modules())
    waiting = [node for node in module.graph.nodes if node.op == "output"]
    seen = set(waiting)
    while waiting:
        for node in waiting.pop().all_input_nodes:
            layer = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, LAYERS):
                found.append(layer)
            elif node not in seen:
                seen.add(node)
                waiting.append(node)
    return found


LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def prune_converted(module: nn.Module, inputs: Inputs, ratio: float) -> nn.Module:
    """A pruned copy."""
    smaller = copy.deepcopy(module)
    torch_pruning.pruner.MagnitudePruner(
        smaller,
        example_inputs=inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=final_layers(smaller),
    ).step()
    smaller(*inputs)
    return smaller


def at_share(prune: Callable[[float], nn.Module], inputs: Inputs, flops: float) -> nn.Module:
    """What has this share of the arithmetic less, as near as halving comes."""
    count = torch_pruning.utils.count_ops_and_params
    whole = count(prune(0.0), inputs)[0]
    low, high, best, least = 0.0, 1.0, None, float("inf")
    for _ in range(STEPS):
        middle = (low + high) / 2
        smaller = prune(middle)
        gone = 1 - count(smaller, inputs)[0] / whole
        if best is None or abs(gone - flops) < least:
            best, least = smaller, abs(gone - flops)
        low, high = (low, middle) if gone >= flops else (middle, high)
    return best


def prune_model(feeds: Path, goal: str, share: float, out: Path, models: list[str]) -> None:
    """Converts, prunes and exports."""
    module, proto = converted(models)
    inputs = tuple(torch.from_numpy(np.array(each)) for each in _given(proto, feeds).values())
    prune = partial(prune_converted, module, inputs)
    smaller = prune(share) if goal == "ratio" else at_share(prune, inputs, share)
    export_like(smaller, inputs, proto, out)


def prune_twin(
    name: str, which: str, feeds: Path, goal: str, share: float, out: Path, model: Path
) -> None:
    """The same for a model that has a torch module."""
    proto = onnx.load(str(model))
    given = _given(proto, feeds)

    def prune(ratio: float) -> nn.Module:
        family = twin(name, model, given)
        if ratio:
            pruned(family, ratio, which == "all")
        return family.module

    inputs = tuple(torch.from_numpy(np.array(each)) for each in given.values())
    smaller = prune(share) if goal == "ratio" else at_share(prune, inputs, share)
    export_like(smaller, inputs, proto, out)


def _sources(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def _given(proto: onnx.ModelProto, feeds: Path) -> Feeds:
    first = read_feeds(feeds)[0]
    return {value.name: first[value.name] for value in _sources(proto)}


def export_like(module: nn.Module, inputs: Inputs, proto: onnx.ModelProto, out: Path) -> None:
    """With the names and open dimensions that there were."""
    sources, results = _sources(proto), list(proto.graph.output)
    options = {
        "input_names": [value.name for value in sources],
        "output_names": [value.name for value in results],
        "dynamic_axes": {v.name: axes for v in (*sources, *results) if (axes := _open_axes(v))},
    }
    export(module, inputs, "torchscript", out, **options)


def _open_axes(value: onnx.ValueInfoProto) -> dict[int, str]:
    dims = value.type.tensor_type.shape.dim
    return {
        axis: dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(dims)
        if not dim.HasField("dim_value")
    }


# ---------------------------------------------------------------- the program


def run_job(job: dict[str, Any]) -> None:
    """Builds or prunes one network, and exports it."""
    family = build(job["family"], Share(job.get("inner", 1.0), job.get("stream", 1.0)))
    if "ratio" in job:
        pruned(family, job["ratio"], job["normalized"])
    export_family(family, job["exporter"], Path(job["out"]))


def run_jobs(jobs: list[dict[str, Any]]) -> None:
    """Does all jobs; one that fails says so in its record."""
    for job in jobs:
        failure = ""
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                run_job(job)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the result)
            failure = f"{type(error).__name__}: {str(error)[:120]}"
        record = {"failure": failure, "seconds": time.perf_counter() - started}
        Path(job["out"]).with_suffix(".json").write_text(json.dumps(record) + "\n")


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    match arguments:
        case ["list"]:
            sys.stdout.write(json.dumps(list(FAMILIES)))
        case ["families", jobs]:
            run_jobs(json.loads(Path(jobs).read_text()))
        case ["model", feeds, ("ratio" | "flops") as goal, share, out, *models]:
            with contextlib.redirect_stdout(io.StringIO()):
                prune_model(Path(feeds), goal, float(share), Path(out), models)
        case ["twin", name, which, feeds, ("ratio" | "flops") as goal, share, out, model]:
            with contextlib.redirect_stdout(io.StringIO()):
                prune_twin(name, which, Path(feeds), goal, float(share), Path(out), Path(model))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
