"""Rewrite an exported graph so that linear layers and convolutions are computed in 8 bits.

onnxruntime and OpenVINO have fast products of 8-bit matrices, but not for the same graphs. onnxruntime fuses the
operators of dynamic quantisation, which OpenVINO computes in float32. OpenVINO needs scales that are constant, which
are wrong for other speech than they were measured on. This graph suits both, and uses standard operators alone:

    size = the largest magnitude of a row of x           (..., 1)
    y = DQ(Q(x * 127 / size)) @ DQ(codes) * size / 127

Q and DQ, QuantizeLinear and DequantizeLinear, have the constant scale 1 for rows, and that of its output channel for a
weight. Every row, a frame, has a size of its own. So a loud frame or padding does not make the others coarse, and an
utterance has the same logits alone and in a batch.

A convolution in time without padding becomes a product of windows, k frames side by side, each with the size of its
largest frame. Between convolutions values stay (batch, time, channels), so that nothing is transposed back and forth.

What stays in float32: products of two activations, the CTC head, layers too small to gain, and all other
convolutions. The weights of these are stored in 8 bits where they are large.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy import ndarray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from espnet_pinch.export.int8_weights import Int8Weight

LEVELS = 127  # of either sign
ZERO = 128  # how onnxruntime's fastest products store 0: the rows must be unsigned, the weights signed
FEWEST = 16  # rows and columns of a product that is faster in 8 bits with the rounding of its rows
LARGE = 1 << 16  # weights that are worth storing in 8 bits
SMALLEST = 1e-12  # size of a row: a row of zeros must not be divided by 0
LOWEST_GELU = 0.1701  # the largest magnitude below 0 that GELU and its approximation return
TO_TIME_FIRST = [0, 2, 1]  # the transposition of (batch, channels, time), and back


class Rows(NamedTuple):
    """A value as whole numbers.

    Attributes:
        values: (..., columns) float32, whole numbers from -127 to 127.
        factors: (..., 1), what rows are to be multiplied by.
    """

    values: ir.Value
    factors: ir.Value


def to_int8(model: ir.Model, int8: Callable[[ndarray], Int8Weight]) -> None:
    """Rewrite a graph of ``espnet_pinch.export.formats.onnx``, in place.

    Args:
        int8: returns a weight, (out, ...), in 8 bits.
    """
    rewriter = _Rewriter(model.graph, int8)
    for node in list(model.graph):
        rewriter.visit(node)
    rewriter.store_others()
    RemoveUnusedNodesPass()(model)


class _Rewriter:
    """Goes through the nodes of a graph in their order."""

    def __init__(self, graph: ir.Graph, int8: Callable[[ndarray], Int8Weight]):
        self.graph, self.int8 = graph, int8
        self.tape = Tape()
        self.rows: dict[ir.Value, Rows] = {}  # layers with the same input share its rows
        self.time_first: dict[ir.Value, ir.Value] = {}  # (batch, channels, time): the same as (batch, time, channels)
        self.constants: dict[str, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Replace a node if that makes it faster."""
        rewrite = {
            "MatMul": self.linear,
            "Gemm": self.linear,
            "Conv": self.convolution,
            "Gelu": self.gelu,
            "Transpose": self.transpose,
        }.get(node.op_type)
        new = rewrite(node) if rewrite else None
        if new is None:
            return
        [old] = node.outputs
        self.insert_before(node)
        if new.producer() is not None and new.shape is None:
            new.shape, new.type = old.shape, old.type  # onnxruntime fuses some operators only if it knows shapes
        old.replace_all_uses_with(new)
        self.graph.remove(node, safe=True)

    def insert_before(self, node: ir.Node) -> None:
        self.graph.insert_before(node, self.tape.nodes)
        for value in self.tape.initializers:
            self.graph.register_initializer(value)
        self.tape = Tape()

    # ---- The layers

    def linear(self, node: ir.Node) -> ir.Value | None:
        x, weight, bias = (*node.inputs, None)[:3]
        matrix, attributes = _constant(weight), node.attributes
        if x is None or matrix is None or matrix.ndim != 2 or min(matrix.shape) < FEWEST or _is_head(node):
            return None
        if attributes.get_int("transA", 0) or {attributes.get_float(name, 1.0) for name in ("alpha", "beta")} != {1.0}:
            return None
        if not attributes.get_int("transB", 0):
            matrix = np.ascontiguousarray(matrix.T)
        if x not in self.rows:
            size = self.sizes(x)
            self.rows[x] = Rows(self.marked(self.rounded(x, size)), self.factors(size))
        y = self.product(self.rows[x], matrix, _name(node))
        return y if bias is None else self.op("Add", y, bias)

    def convolution(self, node: ir.Node) -> ir.Value | None:
        x, weight, bias = (*node.inputs, None)[:3]
        kernel = _constant(weight)  # (out, in, k)
        attributes = node.attributes
        if x is None or kernel is None or kernel.ndim != 3 or min(kernel.shape[:2]) < FEWEST:
            return None
        if any(attributes.get_ints("pads", [])) or set(attributes.get_ints("dilations", [1])) != {1}:
            return None
        if attributes.get_int("group", 1) != 1:
            return None
        [step] = attributes.get_ints("strides", [1])
        width = kernel.shape[2]
        first = self.as_time_first(x)
        sizes = self.sizes(first)
        size = self.joined("Max", [self.tap(sizes, i, width, step) for i in range(width)])
        taps = [self.rounded(self.tap(first, i, width, step), size) for i in range(width)]
        windows = self.marked(self.joined("Concat", taps, axis=-1))
        y = self.product(Rows(windows, self.factors(size)), kernel, _name(node))
        return self.as_channels_first(y if bias is None else self.op("Add", y, bias))

    # ---- Values that are (batch, time, channels)

    def gelu(self, node: ir.Node) -> ir.Value | None:
        [x] = node.inputs
        if x not in self.time_first:
            return None
        return self.as_channels_first(self.tape.op("Gelu", [self.time_first[x]], node.attributes))

    def transpose(self, node: ir.Node) -> ir.Value | None:
        [x], [y] = node.inputs, node.outputs
        if x is None or node.attributes.get_ints("perm") != TO_TIME_FIRST:
            return None
        if x not in self.time_first:
            self.time_first[y] = x
            return None
        return self.time_first[x]

    def as_time_first(self, x: ir.Value) -> ir.Value:
        if x not in self.time_first:
            self.time_first[x] = self.op("Transpose", x, perm=TO_TIME_FIRST)
        return self.time_first[x]

    def as_channels_first(self, x: ir.Value) -> ir.Value:
        y = self.op("Transpose", x, perm=TO_TIME_FIRST)  # is removed in the end if nothing needs it
        self.time_first[y] = x
        return y

    def tap(self, x: ir.Value, i: int, width: int, step: int) -> ir.Value:
        """Of the frames, (batch, time, channels), the i-th of every window."""
        if width == step == 1:
            return x
        end = i - width + 1  # from the last frame, so that all taps have as many frames as there are windows
        limits = [self.constant(n, np.int64, [1]) for n in (i, end if end < 0 else np.iinfo(np.int64).max, 1, step)]
        return self.op("Slice", x, *limits)

    # ---- The arithmetic

    def sizes(self, x: ir.Value) -> ir.Value:
        """The largest magnitudes of rows, (..., columns) -> (..., 1)."""
        axis = self.constant(-1, np.int64, [1])
        most = self.op("ReduceMax", x, axis, keepdims=1)
        if _from_gelu(x):
            return self.op("Max", most, self.constant(LOWEST_GELU))
        least = self.op("Neg", self.op("ReduceMin", x, axis, keepdims=1))  # as fast as Abs first, without its memory
        return self.op("Max", most, least, self.constant(SMALLEST))

    def rounded(self, x: ir.Value, size: ir.Value) -> ir.Value:
        """Rows as unsigned 8-bit numbers, around ``ZERO``."""
        scaled = self.op("Mul", x, self.op("Div", self.constant(LEVELS), size))
        return self.op("QuantizeLinear", scaled, self.constant(1), self.constant(ZERO, np.uint8))

    def marked(self, whole: ir.Value) -> ir.Value:
        """What ``rounded`` returns, as numbers around 0. By this operator, runtimes find products in 8 bits."""
        return self.op("DequantizeLinear", whole, self.constant(1), self.constant(ZERO, np.uint8))

    def factors(self, size: ir.Value) -> ir.Value:
        return self.op("Mul", size, self.constant(1 / LEVELS))

    def product(self, rows: Rows, weight: ndarray, name: str) -> ir.Value:
        """Rows, (..., in), times a matrix, (out, in); or windows, (..., k * in), times a kernel, (out, in, k)."""
        codes, scales = self.int8(weight)
        if codes.ndim == 3:
            codes = codes.transpose(0, 2, 1).reshape(len(codes), -1)
        stored = self.op("DequantizeLinear", *self.stored(name, np.ascontiguousarray(codes.T), scales), axis=1)
        return self.op("Mul", self.op("MatMul", rows.values, stored), rows.factors)

    def store_others(self) -> None:
        """Store large weights of what is computed in float32 in 8 bits.

        Runtimes unpack them when they load the file, as all inputs are constant. That is why there is no
        DequantizeLinear here: onnxruntime computes that one anew in every run.
        """
        for value in list(self.graph.initializers.values()):
            weight = _constant(value)
            if weight is None or weight.ndim != 3 or weight.size < LARGE or not value.uses():
                continue
            codes, scales = self.int8(weight)
            whole, factors = self.stored(str(value.name), codes, scales.reshape(-1, 1, 1))
            new = self.op("Mul", self.op("Cast", whole, to=ir.DataType.FLOAT), factors)
            new.shape, new.type = value.shape, value.type
            self.insert_before(self.graph[0])
            value.replace_all_uses_with(new)

    def stored(self, name: str, codes: ndarray, scales: ndarray) -> tuple[ir.Value, ir.Value]:
        whole, factors = ir.tensor(codes, name=f"{name}.int8"), ir.tensor(scales, name=f"{name}.scales")
        return self.tape.initializer(whole), self.tape.initializer(factors)

    def joined(self, kind: str, values: list[ir.Value], **attributes) -> ir.Value:
        return values[0] if len(values) == 1 else self.op(kind, *values, **attributes)

    def op(self, kind: str, *inputs: ir.Value, **attributes) -> ir.Value:
        return self.tape.op(kind, inputs, attributes)

    def constant(self, number: float, dtype: type = np.float32, shape: list[int] | None = None) -> ir.Value:
        name = f"int8_graph.{np.dtype(dtype).name}.{number}"
        if name not in self.constants:
            array: ndarray = np.array(number, dtype).reshape(shape or [])
            self.constants[name] = self.tape.initializer(ir.tensor(array, name=name))
        return self.constants[name]


def _constant(value: ir.Value | None) -> ndarray | None:
    """A weight, float32; None for anything else."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy() if value.dtype == ir.DataType.FLOAT else None


def _from_gelu(value: ir.Value | None) -> bool:
    """Whether a value comes from GELU, transposed or not."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose":
        return _from_gelu(node.inputs[0])
    return node is not None and node.op_type == "Gelu"


def _is_head(node: ir.Node) -> bool:
    """Whether a product is that of the last layer, whose rounding would be in the logits as it is."""
    [product] = node.outputs
    with_bias = [value for use in product.uses() for value in use.node.outputs]
    return any(value.is_graph_output() for value in [product, *with_bias])


def _name(node: ir.Node) -> str:
    return f"int8_graph.{node.name}"
