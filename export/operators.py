"""The ONNX operators and data types that TensorRT 10.3 takes: JetPack 6's, older than any parser at hand here.

An inference, for the table of 10.3 itself could not be had. Read from NVIDIA's tables of releases on either side of it,
docs/operators.md of github.com/onnx/onnx-tensorrt for TensorRT 9.2 and for 10.15: listed here is what both support, in
the types that both name. Its docs/Changelog.md, read for 9.2 to 10.5, names no operator withdrawn; what releases
from 10.0 on added (DeformConv in 10.1, windows in 10.4, STFT in 10.5) is left out, also where 10.3 has it. `MAX_OPSET`
is what the table for 10.0 says. Restrictions of single attributes are not listed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

MAX_OPSET = 20

_FLOATS = ("float32", "float16")
_NUMBERS = (*_FLOATS, "int32", "int64")
_ALL = (*_NUMBERS, "bool")

# Types of an operator's first input, by NumPy's names; bfloat16 and the types of quantized tensors are left out.
_BY_TYPES: Mapping[tuple[str, ...], str] = {
    ("bool",): "And Not Or Xor",
    ("int8",): "DequantizeLinear",
    _FLOATS: """
        Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh
        CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample
        GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM
        LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
        NonMaxSuppression NonZero PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Reciprocal Resize RoiAlign Round ScaledTanh Scan Selu Sigmoid Sin Sinh
        Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample
    """,
    _NUMBERS: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod Mul
        Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
    """,
    _ALL: """
        Cast CastLike Concat Constant Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
    """,
}

TENSORRT_10_3: Mapping[str, tuple[str, ...]] = {
    operator: types for types, operators in _BY_TYPES.items() for operator in operators.split()
}
"""Operator -> types of its first input."""


def refused_by_tensorrt_10_3(operators: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The operators and types that are not listed, a line each; empty where all are.

    Args:
        operators: operator -> types of the first inputs of its nodes, by NumPy's names; without types, the operator
            alone is looked up.
    """
    lines = []
    for operator, types in sorted(operators.items()):
        listed = TENSORRT_10_3.get(operator)
        if listed is None:
            lines.append(f"{operator}: not among the operators of TensorRT 10.3")
            continue
        refused = sorted(set(types) - set(listed))
        if refused:
            lines.append(f"{operator}: found {', '.join(refused)}, wanted {' or '.join(listed)}")
    return tuple(lines)
