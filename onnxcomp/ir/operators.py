"""What the standard says about an operator, in a form that is fast to check nodes against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import onnx
from onnx import AttributeProto, defs

from onnxcomp.errors import ModelError
from onnxcomp.ir.walk import place_of, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import NodeProto

STANDARD_DOMAINS = frozenset(
    {"", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"}
)
# The runtime takes these as imported when a file forgets to say so; they have one version.
ALWAYS_IMPORTED = frozenset({"com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental"})

# Operators that onnxruntime has in the main domain although the standard does not, up to an opset.
# Its own optimiser and older exporters write them.
_RUNTIME_OPERATORS = {
    "LayerNormalization": 16,  # standard from 17 on
    "SimplifiedLayerNormalization": 9999,
    "MemcpyFromHost": 9999,
    "MemcpyToHost": 9999,
    **dict.fromkeys(
        (
            "Affine",
            "Crop",
            "DynamicSlice",
            "GivenTensorFill",
            "GRUUnit",
            "ImageScaler",
            "MeanVarianceNormalization",
            "ParametricSoftplus",
            "Scale",
            "ScaledTanh",
            "ThresholdedRelu",
        ),
        9,
    ),
}

_PADS = frozenset({"", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"})
_DIRECTIONS = frozenset({"forward", "reverse", "bidirectional"})
_POST = frozenset({"NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"})
_SCATTER = frozenset({"none", "add", "mul", "min", "max"})
_LOSS = frozenset({"none", "mean", "sum"})
# The words that string attributes allow; schemas do not carry them.
WORDS: Mapping[tuple[str, str], frozenset[str]] = {
    **{
        (operator, "auto_pad"): _PADS
        for operator in (
            "Conv",
            "ConvInteger",
            "ConvTranspose",
            "QLinearConv",
            "DeformConv",
            "MaxPool",
            "AveragePool",
            "LpPool",
        )
    },
    **{(operator, "direction"): _DIRECTIONS for operator in ("LSTM", "GRU", "RNN")},
    **{(operator, "reduction"): _SCATTER for operator in ("ScatterElements", "ScatterND")},
    **{
        (operator, "reduction"): _LOSS
        for operator in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    },
    **{
        (operator, "post_transform"): _POST
        for operator in (
            "LinearClassifier",
            "LinearRegressor",
            "SVMClassifier",
            "SVMRegressor",
            "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
        )
    },
    ("Pad", "mode"): frozenset({"constant", "reflect", "edge", "wrap"}),
    ("Resize", "mode"): frozenset({"nearest", "linear", "cubic"}),
    ("Resize", "coordinate_transformation_mode"): frozenset(
        {
            "half_pixel",
            "half_pixel_symmetric",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
            "tf_half_pixel_for_nn",
            "tf_crop_and_resize",
        }
    ),
    ("Resize", "nearest_mode"): frozenset(
        {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple"}
    ),
    ("Resize", "keep_aspect_ratio_policy"): frozenset({"stretch", "not_larger", "not_smaller"}),
    ("Upsample", "mode"): frozenset({"nearest", "linear", "bilinear"}),
    ("DepthToSpace", "mode"): frozenset({"DCR", "CRD"}),
    ("GridSample", "mode"): frozenset({"bilinear", "linear", "nearest", "bicubic", "cubic"}),
    ("GridSample", "padding_mode"): frozenset({"zeros", "border", "reflection"}),
    ("RoiAlign", "mode"): frozenset({"avg", "max"}),
    ("RoiAlign", "coordinate_transformation_mode"): frozenset({"half_pixel", "output_half_pixel"}),
    ("Gelu", "approximate"): frozenset({"none", "tanh"}),
    ("BitShift", "direction"): frozenset({"LEFT", "RIGHT"}),
    ("TfIdfVectorizer", "mode"): frozenset({"TF", "IDF", "TFIDF"}),
    ("StringNormalizer", "case_change_action"): frozenset({"NONE", "LOWER", "UPPER"}),
    ("Normalizer", "norm"): frozenset({"MAX", "L1", "L2"}),
}
_WORDY = frozenset(attribute for _, attribute in WORDS)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator at one version: how many operands, and which attributes."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    needed_inputs: frozenset[int]
    needed_outputs: frozenset[int]
    attributes: Mapping[str, int]
    needed_attributes: frozenset[str]


@lru_cache(maxsize=4096)
def operator(domain: str, name: str, version: int) -> Operator | str:
    """Returns an operator, or what is wrong with asking for it."""
    try:
        schema = defs.get_schema(name, version, domain)
    except defs.SchemaError:
        return _unknown(domain, name, version)
    if schema.deprecated:
        return f"is deprecated and gone in opset {version}"
    single = defs.OpSchema.FormalParameterOption.Single
    return Operator(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        frozenset(i for i, formal in enumerate(schema.inputs) if formal.option == single),
        frozenset(i for i, formal in enumerate(schema.outputs) if formal.option == single),
        {name: formal.type.value for name, formal in schema.attributes.items()},  # type: ignore[attr-defined]
        frozenset(name for name, formal in schema.attributes.items() if formal.required),
    )


def _unknown(domain: str, name: str, version: int) -> str:
    where = f"opset {version}" if not domain else f"version {version} of {domain}"
    if defs.has(name, domain):
        since = min(
            schema.since_version
            for schema in defs.get_all_schemas_with_history()
            if schema.name == name and schema.domain == domain
        )
        return f"does not exist in {where}, it came with {since}"
    return f"does not exist in {where}"


def only_in_runtime(domain: str, name: str, version: int) -> bool:
    """Whether onnxruntime knows an operator of the main domain that the standard does not."""
    return not domain and version <= _RUNTIME_OPERATORS.get(name, 0)


def newest(domain: str) -> int:
    """Returns the newest version of a standard domain that the installed onnx knows."""
    if not domain:
        return defs.onnx_opset_version()
    return _newest_versions().get(domain, 1)


@lru_cache(maxsize=1)
def _newest_versions() -> dict[str, int]:
    newest_by_domain: dict[str, int] = {"ai.onnx.ml": onnx.helper.VERSION_TABLE[-1][3]}
    for schema in defs.get_all_schemas_with_history():
        known = newest_by_domain.get(schema.domain, 1)
        newest_by_domain[schema.domain] = max(known, schema.since_version)
    return newest_by_domain


def check_operands(node: NodeProto, known: Operator) -> None:
    """Raises `ModelError` when a node has operands that its operator cannot have."""
    _check_slots(node, list(node.input), known.inputs, known.needed_inputs, "input")
    _check_slots(node, list(node.output), known.outputs, known.needed_outputs, "output")


def _check_slots(
    node: NodeProto, names: list[str], bounds: tuple[int, int], needed: frozenset[int], what: str
) -> None:
    count = len(names)
    if not bounds[0] <= count <= bounds[1]:
        allowed = f"{bounds[0]}" if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
        if bounds[1] > 2**30:
            allowed = f"at least {bounds[0]}"
        raise ModelError(f"{place_of(node)} has {count} {what}s, it takes {allowed}")
    if "" in names:
        for index in needed:
            if index < count and not names[index]:
                raise ModelError(f"{place_of(node)} lacks its {what} {index}")


def check_attributes(node: NodeProto, known: Operator) -> None:
    """Raises `ModelError` when a node lacks attributes, or has some of another kind or word."""
    present = set()
    for attribute in node.attribute:
        name = attribute.name
        present.add(name)
        expected = known.attributes.get(name)
        if expected is None:
            if not name.startswith("__"):  # the same exception the standard's own checker makes
                raise ModelError(
                    f"{place_of(node)} has an attribute {printable(name)}, which it cannot have"
                )
        elif attribute.type != expected and not attribute.ref_attr_name:
            kinds = AttributeProto.AttributeType
            raise ModelError(
                f"attribute {printable(name)} of {place_of(node)} is {_kind(attribute.type)}, "
                f"not {kinds.Name(expected)}"
            )
        if name in _WORDY and not attribute.ref_attr_name:
            _check_word(node, attribute)
    if not known.needed_attributes <= present:
        missing = min(known.needed_attributes - present)
        raise ModelError(f"{place_of(node)} lacks its attribute {printable(missing)}")


def _kind(number: int) -> str:
    kinds = AttributeProto.AttributeType
    return kinds.Name(number) if number in kinds.values() else f"of kind {number}"


def _check_word(node: NodeProto, attribute: AttributeProto) -> None:
    allowed = WORDS.get((node.op_type, attribute.name))
    if allowed is None or attribute.type != AttributeProto.STRING:
        return
    word = attribute.s.decode("utf-8", errors="replace")
    if word not in allowed:
        choices = ", ".join(sorted(allowed - {""}))
        raise ModelError(
            f"attribute {attribute.name} of {place_of(node)} is {word[:40]!r}, not one of {choices}"
        )
