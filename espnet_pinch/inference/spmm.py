"""Product of a sparse matrix with a dense one on the CPU, compiled by numba.

The weight is cut into tiles of ``TILE`` columns. The part of the input that a tile reads, ``TILE`` rows of ``FRAMES``
values, stays in the L1 cache while every row of the weight reads it again. The ``FRAMES`` sums of an output row stay in
registers. The library kernels (MKL's, behind torch's CSR tensors) instead fetch the input from the L2 cache or from
memory for every kept weight. They take longer than a dense product up to a sparsity of 80 to 90 %.
"""

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TILE = 128  # columns of the weight; 32 KB of input
FRAMES = 64  # 4 registers of AVX-512, 8 of AVX2

# If torch is loaded first, numba uses torch's OpenMP threads. Starting them changes torch's number, so it is restored.
_threads = torch.get_num_threads()
numba.get_num_threads()
torch.set_num_threads(_threads)

_ALIGNED = 64  # bytes of a cache line
_FLOAT, _BYTE, _INT32, _INT64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, FRAMES)


@intrinsic
def _add_row(typing, x, columns, values, start, end, y):
    """``y += sum of values[k] * x[columns[k]] over start <= k < end``, for addresses of x (TILE, FRAMES), y (FRAMES,).

    Written in LLVM instructions, because numba does not keep the sums in registers in a Python loop.
    """
    signature = types.void(types.uintp, types.uintp, types.uintp, types.int64, types.int64, types.uintp)

    def codegen(context, builder, signature, arguments):
        x, columns, values, start, end, y = arguments
        x, y = (builder.inttoptr(pointer, _VECTOR.as_pointer()) for pointer in (x, y))
        columns = builder.inttoptr(columns, _BYTE.as_pointer())
        values = builder.inttoptr(values, _FLOAT.as_pointer())
        total = cgutils.alloca_once_value(builder, builder.load(y, align=_ALIGNED))
        undefined, zeros = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(_INT32, FRAMES), None)
        with cgutils.for_range_slice(builder, start, end, _INT64(1)) as (k, _):
            column = builder.zext(builder.load(builder.gep(columns, [k])), _INT64)
            row = builder.load(builder.gep(x, [column]), align=_ALIGNED)
            value = builder.insert_element(undefined, builder.load(builder.gep(values, [k])), _INT32(0))
            product = builder.fmul(row, builder.shuffle_vector(value, undefined, zeros), flags=["contract"])
            builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)
        builder.store(builder.load(total), y, align=_ALIGNED)
        return context.get_dummy_value()

    return signature, codegen


def _kept(function):
    """Compile for all cores, and cache the result on disk if numba finds a folder that it can write to."""
    options = dict(parallel=True, nogil=True)
    try:
        return numba.njit(**options, cache=True)(function)
    except RuntimeError:  # it can write neither beside this file nor in the home folder
        return numba.njit(**options)(function)


@numba.njit
def _aligned(rows):
    """An uninitialised array (rows, FRAMES) at the start of a cache line."""
    buffer = np.empty(rows * FRAMES + _ALIGNED // 4, np.float32)
    start = -(buffer.ctypes.data // 4) % (_ALIGNED // 4)
    return buffer[start : start + rows * FRAMES].reshape(rows, FRAMES)


@_kept
def spmm(starts, columns, values, bias, x, y, parts):
    """``y = x W^T + b``, divided among numba's threads by blocks of frames and by ``parts`` of W's rows.

    Args:
        starts: (tiles * out + 1,) int32; row r of tile t has the kept weights from starts[t * out + r] up to the next.
        columns: (kept,) uint8, column of each kept weight in its tile.
        values: (kept,) float32.
        bias: (out,) float32.
        x: (N, in) float32, contiguous.
        y: (N, out) float32, contiguous; the result is written here.
        parts: number of parts that the rows of W are cut into.
    """
    frames, width = x.shape
    height = y.shape[1]
    blocks = (frames + FRAMES - 1) // FRAMES
    for task in numba.prange(blocks * parts):
        first, part = task // parts * FRAMES, task % parts
        count = min(FRAMES, frames - first)
        top, bottom = part * height // parts, (part + 1) * height // parts
        tile, sums = _aligned(TILE), _aligned(bottom - top)
        tile[:, count:] = 0
        for row in range(top, bottom):
            sums[row - top] = bias[row]
        for t in range((width + TILE - 1) // TILE):
            left = t * TILE
            for i in range(count):
                for column in range(min(TILE, width - left)):
                    tile[column, i] = x[first + i, left + column]
            for row in range(top, bottom):
                k = t * height + row
                y_row = sums.ctypes.data + (row - top) * FRAMES * 4
                _add_row(tile.ctypes.data, columns.ctypes.data, values.ctypes.data, starts[k], starts[k + 1], y_row)
        for row in range(top, bottom, 16):  # 16 values fill a cache line of y
            for i in range(count):
                for r in range(row, min(row + 16, bottom)):
                    y[first + i, r] = sums[r - top, i]
