"""A weight as the parts that a sparse file stores, and back. ``espnet_pinch/export/sparse_file.py`` describes them."""

import functools
import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from espnet_pinch.core.grids import LARGEST, Codes, Grid
from espnet_pinch.errors import UserError

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
QUANTIZED = "quantized"
# What a file may store weights as: a type, 8 bits, or the codes of a quantised model.
VALUES = (*FLOATS, "int8", QUANTIZED)
# The parts of a weight. One that is whole has only "dense"; the others have "values" or "codes".
PARTS = ("dense", "mask", "values", "codes", "levels", "scales")
FORMS = ({"dense"}, {"mask", "values"}, {"codes", "levels", "scales"}, {"mask", "codes", "levels", "scales"})


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither infinities nor NaN."""
    # In one pass, several times as fast as isfinite().all(); NaN is the smallest and the largest of its tensor.
    return not tensor.numel() or all(end.isfinite() for end in tensor.aminmax())


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` rounded to ``dtype``.

    Raises:
        UserError: it holds a value that is not finite, or too large for ``dtype``.
    """
    if not all_finite(tensor):
        raise UserError("holds a value that is not finite")
    rounded = tensor.to(dtype)
    if not all_finite(rounded):
        raise UserError(f"holds {tensor.abs().max():g}, too large for {str(dtype).removeprefix('torch.')}; use bf16")
    return rounded


def to_codes(weight: Tensor, scales: Tensor) -> Codes:
    """The codes of a quantised weight.

    Args:
        weight: (rows, ...) float32.
        scales: (rows,) float32, at least 0; 0 only for a row of zeros.

    Raises:
        UserError: the weight is not exactly whole numbers from -127 to 127 times these scales.
    """
    if scales.shape == weight.shape[:1] and scales.dtype == weight.dtype:
        codes = (weight / torch.where(scales > 0, scales, 1).view(-1, *[1] * (weight.dim() - 1))).round()
        found = Codes(codes, scales)
        if codes.abs().amax() <= LARGEST and torch.equal(found.weight(), weight):
            return found
    raise UserError(f"is not whole numbers from -{LARGEST} to {LARGEST} times the scales of its rows")


def round_to(values: str, weight: Tensor, scales: Tensor | None) -> Tensor | Codes:
    """What a file with such values makes of a weight.

    Args:
        values: one of ``VALUES``.
        weight: of the model, (rows, ...) or of any shape.
        scales: of a quantised weight, (rows,); None for another.

    Raises:
        UserError: as ``cast`` and ``to_codes``.
    """
    if not weight.is_floating_point():
        return weight
    if values in FLOATS:
        return cast(weight, FLOATS[values])
    weight = cast(weight, torch.float32)
    if scales is not None:
        return to_codes(weight, scales)
    if values == "int8":
        # A weight of one row, such as the magnitudes of a weight norm, would have one scale for all of it.
        return Grid(8).round(weight) if weight.dim() > 1 and len(weight) > 1 else weight
    half = weight.to(torch.float16)
    return half if torch.equal(half.float(), weight) else weight


def encode(weight: Tensor | Codes) -> dict[str, Tensor]:
    """The parts of a weight: of one of the ``FORMS``.

    Args:
        weight: what ``round_to`` returns.

    Raises:
        UserError: a scale is too large.
    """
    if isinstance(weight, Codes):
        codes = weight.codes.flatten().to(torch.int8).numpy()
        keep = codes != 0
        kept = codes[keep]
        size = np.abs(kept)
        levels = np.unique(size)
        place = np.zeros(LARGEST + 1, np.uint8)
        place[levels] = np.arange(len(levels))
        parts = {
            "codes": pack(2 * place[size] + (kept < 0), _base(len(levels))),
            "levels": torch.from_numpy(levels),
            "scales": checked_scales(weight.scales, weight.codes.shape),
        }
        return parts if keep.all() else {"mask": pack(keep, 2), **parts}
    stored = weight != 0
    if weight.is_floating_point() and weight.dim() > 1 and not stored.all():
        parts = {"mask": pack(stored.flatten().numpy(), 2), "values": weight[stored]}
        if sum(part.nbytes for part in parts.values()) < weight.nbytes:
            return parts
    return {"dense": weight.contiguous()}


def decode(parts: dict[str, Tensor], like: Tensor) -> Tensor | Codes:
    """The weight of the parts that ``encode`` returns, in float32, or as it is if it holds integers.

    Its memory is that of ``like``, whatever the parts hold.

    Args:
        parts: of one of the ``FORMS``.
        like: a weight of the same shape and type, on any device.

    Raises:
        UserError: the parts do not fit each other or ``like``, or hold a value that is not finite.
    """
    shape = like.shape
    if not like.is_floating_point() and [part.dtype for part in parts.values()] != [like.dtype]:
        raise UserError(f"is not stored as {like.dtype}")
    if "dense" in parts:
        weight = parts["dense"]
        if weight.shape != shape:
            raise UserError(f"has the shape {tuple(weight.shape)}, not {tuple(shape)}")
        return _finite(weight) if like.is_floating_point() else weight
    count = shape.numel()
    keep = unpack(parts["mask"], 2, count, "mask").view(bool) if "mask" in parts else np.ones(count, bool)
    kept = int(np.count_nonzero(keep))
    if "values" in parts:
        values = parts["values"]
        if values.shape != (kept,):
            raise UserError(f"has values of the shape {tuple(values.shape)} where its mask keeps {kept}")
        filled = np.zeros(count, np.float32)
        filled[keep] = _finite(values).numpy()
        return torch.from_numpy(filled).view(shape)
    levels = parts["levels"]
    if levels.dtype != torch.int8 or levels.dim() != 1 or (levels < 1).any() or (levels.diff() < 1).any():
        raise UserError(f"has levels that are not rising whole numbers from 1 to {LARGEST}")
    if kept and not len(levels):
        raise UserError("has no levels")
    codes = np.zeros(count, np.int8)
    digits = unpack(parts["codes"], _base(len(levels)), kept, "codes")
    codes[keep] = np.take(torch.stack([levels, -levels], 1).numpy(), digits)
    return Codes(torch.from_numpy(codes).view(shape).float(), checked_scales(parts["scales"], shape))


def figures(parts: dict[str, Tensor], weight: Tensor | Codes) -> dict:
    """What the bytes of a weight are used for.

    Args:
        parts: as they are stored.
        weight: what ``decode`` returns for them.

    Returns: ``shape``; the number of ``weights``, and of those ``kept``: stored as more than a bit of a mask; ``bits``
    of a kept weight; ``bytes`` of the parts; ``entropy_bound``, in bytes: n H(s) bits for n weights of sparsity s, and
    H(c) bits for each kept code, where H(c) is the entropy of this weight's codes. What is no mask and no code counts
    with its bytes.
    """
    total = sum(part.nbytes for part in parts.values())
    values = weight.codes if isinstance(weight, Codes) else weight
    weights = kept = values.numel()
    coded = 0.0  # bits
    if "mask" in parts:
        kept = int(values.count_nonzero())
        coded += weights * entropy([kept, weights - kept])
    if isinstance(weight, Codes):
        counts = torch.bincount((values[values != 0] + LARGEST).long(), minlength=2 * LARGEST + 1)
        levels = int((counts + counts.flip(0) > 0).sum()) // 2
        bits = 1 + max(levels - 1, 0).bit_length()
        coded += kept * entropy(counts.tolist())
    else:
        bits = 8 * next(parts[part] for part in ("values", "dense") if part in parts).itemsize
    other = sum(part.nbytes for name, part in parts.items() if name not in ("mask", "codes"))
    return {
        "shape": list(values.shape),
        "weights": weights,
        "kept": kept,
        "bits": bits,
        "bytes": total,
        "entropy_bound": math.ceil(other + coded / 8),
    }


def entropy(counts: Iterable[int]) -> float:
    """Entropy, in bits, of one draw from things that are there so often."""
    counts = [count for count in counts if count]
    return -sum(count / sum(counts) * math.log2(count / sum(counts)) for count in counts)


def pack(digits: np.ndarray, base: int) -> Tensor:
    """Digits as bytes, deflated if that is smaller.

    Bytes hold whole digits: Huffman's code works on bytes, and would lose by digits that are cut.

    Args:
        digits: (n,) bool or uint8, each below ``base``.
        base: 2 to 254.

    Returns: (bytes,) uint8.
    """
    table = _table(base)
    padded = np.zeros((_bytes(len(digits), base), table.shape[1]), np.uint8)
    padded.reshape(-1)[: len(digits)] = digits
    raw = np.zeros(len(padded), np.uint8)
    for place in reversed(range(table.shape[1])):
        raw = raw * np.uint8(base) + padded[:, place]
    found = [raw.tobytes()]
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        found.append(deflate.compress(found[0]) + deflate.flush())
    return torch.from_numpy(np.frombuffer(min(found, key=len), np.uint8).copy())


def unpack(stored: Tensor, base: int, count: int, what: str) -> np.ndarray:
    """The digits, (count,) uint8, that ``pack`` was given.

    Args:
        what: is packed, for the message.

    Raises:
        UserError: the bytes are not those of so many digits.
    """
    size, table = _bytes(count, base), _table(base)
    if stored.dtype != torch.uint8 or stored.dim() != 1:
        raise UserError(f"has a {what} part that is {stored.dtype} of the shape {tuple(stored.shape)}, not bytes")
    raw = stored.numpy()
    if len(raw) != size:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than there may be, so that a stream of the right length can end and a longer one shows.
            found = inflate.decompress(raw.data, size + 1)
        except zlib.error:
            found = b""
        if len(found) != size or not inflate.eof or inflate.unused_data:
            raise UserError(f"has a {what} part that is not {size} bytes for {count} weights, deflated or not")
        raw = np.frombuffer(found, np.uint8)
    if size and raw.max() >= len(table):
        raise UserError(f"has a {what} part with a byte over {len(table) - 1}, which stands for nothing")
    digits = np.take(table, raw, axis=0).reshape(-1)
    if digits[count:].any():
        raise UserError(f"has a {what} part with more than its {count} weights")
    return digits[:count]


@functools.cache
def _table(base: int) -> np.ndarray:
    """The digits of every byte, the least significant first: (bytes, digits) uint8."""
    digits = max(n for n in range(1, 9) if base**n <= 256)
    return (np.arange(base**digits)[:, None] // base ** np.arange(digits) % base).astype(np.uint8)


def _bytes(count: int, base: int) -> int:
    """Bytes that ``count`` digits take."""
    return -(-count // _table(base).shape[1])


def _base(levels: int) -> int:
    """The base of the digits of codes: a sign and a level."""
    return max(2, 2 * levels)


def _finite(values: Tensor) -> Tensor:
    if values.dtype not in FLOATS.values():
        raise UserError(f"is stored as {values.dtype}, not one of {', '.join(map(str, FLOATS.values()))}")
    return cast(values.float(), torch.float32)


def checked_scales(scales: Tensor, shape: torch.Size) -> Tensor:
    """The scales; raises UserError if they are not those of a weight of this shape."""
    if scales.dtype != torch.float32 or scales.shape != shape[:1] or not (scales >= 0).all():
        raise UserError(f"has scales that are not {shape[0]} numbers of at least 0")
    cast(scales * LARGEST, torch.float32)
    return scales
