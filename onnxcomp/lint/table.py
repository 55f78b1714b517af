"""The rules of the linter, by code."""

from __future__ import annotations

from onnxcomp.diagnostics import Severity
from onnxcomp.lint import (
    activations,
    biases,
    blocks,
    channels,
    demands,
    kernels,
    neighbours,
    weights,
)
from onnxcomp.lint.rule import Rule

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

RULES: tuple[Rule, ...] = (
    Rule(
        "LNT100",
        _ERROR,
        "the provider refuses the model",
        "The execution provider does not load the model, so nobody can run it there. The message is the "
        "runtime's own.",
        kernels.not_loaded,
    ),
    Rule(
        "LNT101",
        _ERROR,
        "weight scales along the wrong axis",
        "The scales of a Conv or Gemm weight lie along another axis than its output channels. onnxruntime fuses "
        "such a node and ignores the axis: with as many input as output channels the numbers are wrong without a "
        "word, otherwise it fails at run time. The fix rounds the weight again with scales along the output "
        "channels.",
        weights.wrong_axis,
        "other",
    ),
    Rule(
        "LNT102",
        _ERROR,
        "weight scales along the summed axis",
        "The scales of a MatMul weight vary along the axis that is summed over. No integer kernel can do that: "
        "onnxruntime makes one and it fails at run time. The fix rounds the weight again, by column.",
        weights.wrong_rows,
        "other",
    ),
    Rule(
        "LNT103",
        _ERROR,
        "impossible scale",
        "A scale is zero, negative, NaN or infinite: kernels differ in what they make of it, and none of it is "
        "what was meant. Subnormal scales are a warning. Calibrate again.",
        weights.bad_scale,
    ),
    Rule(
        "LNT104",
        _ERROR,
        "parameters that do not fit",
        "Scale, zero point, axis and numbers contradict each other: other shapes, another type of zero point, an "
        "axis that is not there. Runtimes refuse such nodes.",
        weights.bad_shape,
    ),
    Rule(
        "LNT105",
        _ERROR,
        "bias with a scale of its own",
        "The bias of an int8 kernel is added to sums of products, so its scale has to be the product of the scales "
        "of activation and weight, and its zero point 0. onnxruntime takes that for granted and does not look. The "
        "fix stores the same bias with the right scale.",
        biases.bias_scale,
        "same",
    ),
    Rule(
        "LNT106",
        _WARNING,
        "8-bit weights that saturate",
        "x64 processors without VNNI add two products of uint8 and int8 in 16 bits, which saturates when weights "
        "use all their bits. Quantize with 7 bits (reduced range), or to uint8 weights.",
        weights.saturating,
    ),
    Rule(
        "LNT107",
        _WARNING,
        "constant stored in float in front of a Q",
        "A weight is stored in float and quantized when the model is loaded, as tools for training and for TensorRT "
        "write it. The fix stores the quantized numbers: a quarter of the size.",
        weights.quantized_at_run,
        "same",
    ),
    Rule(
        "LNT108",
        _WARNING,
        "float bias keeps a Gemm in float",
        "A Gemm without a Q behind it becomes an int8 kernel that writes float only when its bias is int32. The fix "
        "stores the bias so.",
        biases.float_bias,
        "same",
    ),
    Rule(
        "LNT109",
        _WARNING,
        "weight blocks that are unpacked in every run",
        "A weight in blocks is multiplied as it is stored (MatMulNBits) when blocks lie along the summed axis 0 and "
        "are a power of two from 16 on, and Gemm does not transpose. Otherwise it is unpacked in every run, which "
        "was 35 times slower. The fix stores the same numbers the other way round where that is all it takes.",
        blocks.unpacked_blocks,
        "same",
    ),
    Rule(
        "LNT110",
        _WARNING,
        "float weight that the provider rounds by itself",
        "onnxruntime rounds the float weight of a Conv, ConvTranspose or Gemm between a DQ and a Q to int8 without "
        "being asked, with one scale for all channels: what was left in float for its accuracy is the least accurate "
        "of all. The fix stores int8 with a scale for each channel; to keep a node in float, leave no Q behind it or "
        "no DQ in front of it.",
        weights.rounded_in_silence,
        "other",
    ),
    Rule(
        "LNT111",
        _ERROR,
        "bias that does not fit into int32",
        "The bias of an int8 kernel is stored in steps of the product of the scales of activation and weight. Where a "
        "channel has weights next to zero, its scale is tiny and its bias does not fit into 32 bits: it is cut off "
        "without a word. The fix gives such channels larger scales.",
        biases.overflowing,
        "same",
    ),
    Rule(
        "LNT201",
        _WARNING,
        "int8 activations",
        "Kernels for x64 take uint8 activations. onnxruntime turns int8 ones into uint8 only where the quantized "
        "value has one reader; around all others its kernels fall back to float, with conversions on top. The fix "
        "adds 128 to zero points and numbers, which changes no value.",
        activations.signed,
        "same",
    ),
    Rule(
        "LNT202",
        _WARNING,
        "Relu or Clip kept alive by its Q",
        "A Relu (Clip) in front of a Q costs nothing when the Q has no numbers for what it cuts off: zero point at "
        "the type's minimum, and for Clip an upper end within its limit. With a symmetric grid it stays, and what "
        "stands in front runs in float. The fix moves the zero point; steps stay (for Clip they may become "
        "smaller).",
        activations.kept_relu,
        "finer",
    ),
    Rule(
        "LNT203",
        _WARNING,
        "quantized twice",
        "A value is quantized, turned back and quantized again with other parameters, at most with a Relu or Clip "
        "between: two roundings, and a conversion of every element. The fix takes the first pair out.",
        activations.twice,
        "finer",
    ),
    Rule(
        "LNT204",
        _WARNING,
        "16-bit activations",
        "The kernel takes 8 bits, so the node runs in float between conversions.",
        activations.sixteen_bits,
    ),
    Rule(
        "LNT205",
        _WARNING,
        "activation with many scales",
        "Integer kernels sum over channels, so an activation has one scale. With one for each channel nothing fuses. "
        "Between a Conv and depthwise Conv the fix gives the differences to the scales of the weights on either side, "
        "which changes no value.",
        channels.for_each_channel,
        "same",
    ),
    Rule(
        "LNT206",
        _NOTE,
        "unequal parameters around an operator that hands on bytes",
        "Reshape, MaxPool, Split and the like (Concat too on some targets) hand on bytes as they are when the "
        "parameters in front and behind are equal. Otherwise values are converted and rounded again.",
        activations.unequal,
    ),
    Rule(
        "LNT207",
        _WARNING,
        "scales that are no constants",
        "Scales and zero points have to be constants for a provider to make integer kernels. Fold constants, or "
        "use dynamic quantization where they depend on data.",
        activations.not_constant,
    ),
    Rule(
        "LNT208",
        _WARNING,
        "uint8 weights",
        "The fast instruction multiplies uint8 activations with int8 weights. Products of uint8 and uint8 were no "
        "faster than float. The fix subtracts 128 where the zero point is 128, which changes no value.",
        activations.unsigned_weight,
        "same",
    ),
    Rule(
        "LNT209",
        _ERROR,
        "numbers that the target refuses",
        "The target wants symmetric signed numbers: zero point 0, int8. Quantize for this target "
        "(`--target`).",
        activations.nonzero,
    ),
    Rule(
        "LNT210",
        _ERROR,
        "quantized bias that the target refuses",
        "The target wants biases in float, and adds them itself. The fix puts the float values in the place of the "
        "DQ, which changes no value.",
        biases.int32_bias,
        "same",
    ),
    Rule(
        "LNT211",
        _WARNING,
        "a target without int8",
        "The target's provider has no integer kernels: Q and DQ run as nodes of their own around float ones, which "
        "is slower and less exact than the float model. The hint says what does pay there.",
        demands.no_int8,
    ),
    Rule(
        "LNT212",
        _ERROR,
        "integer operators that the target does not take",
        "QLinearConv, MatMulInteger and the like are operators of onnxruntime's CPU provider. Most others read "
        "QuantizeLinear and DequantizeLinear around float operators instead; quantize in that form.",
        demands.integer_operators,
    ),
    Rule(
        "LNT213",
        _ERROR,
        "weight scales by channel where one is wanted",
        "The target takes one scale for the weight of this operator.",
        demands.by_channel,
    ),
    Rule(
        "LNT214",
        _WARNING,
        "open dimensions",
        "The target compiles a model for fixed sizes. `onnxcomp convert pin-shapes` fixes them.",
        demands.open_shapes,
    ),
    Rule(
        "LNT301",
        _WARNING,
        "float island between Q and DQ",
        "What stands in front of the Q runs in float, and so does what reads the DQ: two conversions and a rounding "
        "for nothing. The fix takes the pair out, so that less is rounded.",
        kernels.islands,
        "finer",
    ),
    Rule(
        "LNT302",
        _WARNING,
        "stored tensor unpacked in every run",
        "A stored int8 tensor is read by an operator that runs in float, so it is turned into float in every run. "
        "The fix stores the float values: faster, and the same numbers, but larger.",
        kernels.unpacked,
        "same",
    ),
    Rule(
        "LNT303",
        _NOTE,
        "border between int8 and float",
        "A Q or DQ that runs on its own because one side computes in int8 and the other in float. Each costs a pass "
        "over the tensor; few of them are no harm.",
        kernels.borders,
    ),
    Rule(
        "LNT304",
        _WARNING,
        "activation function in the way",
        "onnxruntime fuses LeakyRelu, Sigmoid and the like into the Conv in front of them before it looks for "
        "integer kernels; the fused node runs in float. A Q and DQ between the two keep both in int8.",
        kernels.float_directly,
    ),
    Rule(
        "LNT305",
        _WARNING,
        "Pad in front of a quantized Conv",
        "A Pad with zeros between Q and DQ runs in float, with a conversion on either side. The fix lets the Conv "
        "pad, which gives the same numbers: 0 is one of every grid.",
        neighbours.padded,
        "same",
    ),
    Rule(
        "LNT306",
        _WARNING,
        "BatchNormalization behind a quantized Conv",
        "The model was quantized before its BatchNormalization was folded, which runs in float between conversions. "
        "The fix multiplies the scales of the weight, which keeps its numbers, and puts the rest into the bias.",
        neighbours.normalized,
        "finer",
    ),
    Rule(
        "LNT401",
        _WARNING,
        "Conv quantized in every run",
        "Dynamic quantization of Conv (ConvInteger) was 4 to 14 times slower than float. The fix puts the float Conv "
        "back, with the values of the stored weight: larger, faster, and less rounding.",
        kernels.convolution_at_run,
        "finer",
    ),
    Rule(
        "LNT402",
        _WARNING,
        "MaxPool of bytes with channels in front",
        "onnxruntime pools bytes fast only with channels last, which it arranges beside a QLinearConv. A Q "
        "behind the pool is moved in front of it, so neither may stand there; the fix takes them out where "
        "what is around is float anyway.",
        kernels.pooled_bytes,
        "finer",
    ),
    Rule(
        "LNT403",
        _NOTE,
        "Softmax in int8",
        "QLinearSoftmax looks numbers up in a table and was 5 times slower than the float kernel. The fix takes the "
        "Q and DQ in front of it out where what makes the value can write float.",
        kernels.softmax_of_bytes,
        "finer",
    ),
    Rule(
        "LNT404",
        _WARNING,
        "integer operators with int8 activations",
        "QLinearConv and QLinearMatMul written out with int8 activations run on kernels that are slower than float "
        "on x64. The runtime does not turn them into uint8 as it does for Q and DQ.",
        kernels.signed_kernels,
    ),
    Rule(
        "LNT405",
        _WARNING,
        "half precision",
        "The provider has no kernels for half precision and puts Casts around every node.",
        kernels.half_precision,
    ),
)
