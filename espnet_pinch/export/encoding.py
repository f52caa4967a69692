"""Encode a weight matrix with zeros as a bit mask and its kept values, if wanted in fewer bits, and decode it."""

import numpy as np
import torch
from torch import Tensor

from espnet_pinch.errors import UserError

# Types that the kept values of gated layers are stored as.
VALUES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
# Types that all other weights are stored as: the same, except that int8 is only for gated layers.
OTHERS = {**VALUES, "int8": torch.float16}


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` rounded to ``dtype``.

    Raises:
        UserError: it holds a value that is not finite, or too large for ``dtype``.
    """
    if not tensor.isfinite().all():
        raise UserError("holds a value that is not finite")
    rounded = tensor.to(dtype)
    if not rounded.isfinite().all():
        raise UserError(f"holds {tensor.abs().max():g}, too large for {str(dtype).removeprefix('torch.')}; use bf16")
    return rounded


def encode(weight: Tensor, values: str) -> dict[str, Tensor]:
    """The parts that a gated layer's weight is stored as.

    int8 is symmetric, with one scale for each output channel: the largest magnitude of a row becomes 127.

    Args:
        weight: (out, in) float32.
        values: a key of ``VALUES``.

    Returns: ``mask``, (ceil(out * in / 8),) uint8: bit i % 8 of byte i // 8 is 1 if weight i, in row-major order, is
    kept; and ``values``, (kept,), in that order. If these are not smaller than the whole weight (few zeros), there is
    only ``dense``, (out, in). int8 adds ``scales``, (out,) float32.

    Raises:
        UserError: as ``cast``.
    """
    dtype = VALUES[values]
    keep = weight != 0
    parts = {}
    if values == "int8":
        parts["scales"] = cast(weight, torch.float32).abs().amax(1) / 127
        divisor = torch.where(parts["scales"] > 0, parts["scales"], 1)
        weight = (weight / divisor[:, None]).round().clamp(-127, 127).to(torch.int8)
    else:
        weight = cast(weight, dtype)
    packed = torch.from_numpy(np.packbits(keep.flatten().numpy(), bitorder="little"))
    kept = weight[keep]
    if packed.numel() + kept.numel() * dtype.itemsize < weight.numel() * dtype.itemsize:
        return {"mask": packed, "values": kept, **parts}
    return {"dense": weight.contiguous(), **parts}


def decode(parts: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """The float32 weight, (out, in), of the parts that ``encode`` returns.

    Raises:
        UserError: the parts do not fit each other or ``shape``, or hold a value that is not finite.
    """
    if "mask" in parts:
        weight = _unmask(parts["mask"], parts["values"], shape)
    else:
        weight = parts["dense"].float()
        if weight.shape != shape:
            raise UserError(f"has the shape {tuple(weight.shape)}, not {tuple(shape)}")
    if "scales" not in parts:
        return weight
    scales = parts["scales"]
    if scales.shape != shape[:1] or scales.dtype != torch.float32 or not (scales >= 0).all():
        raise UserError(f"has scales that are not {shape[0]} numbers of at least 0")
    if not (scales * 127).isfinite().all():
        raise UserError("holds a value that is not finite")
    return weight * scales[:, None]


def _unmask(mask: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    count = shape.numel()
    if mask.dtype != torch.uint8 or mask.shape != ((count + 7) // 8,):
        raise UserError(
            f"has a mask of {mask.numel()} x {mask.dtype} that does not fit its shape {tuple(shape)}: "
            f"{(count + 7) // 8} bytes are needed"
        )
    bits = np.unpackbits(mask.numpy(), bitorder="little")
    if bits[count:].any():
        raise UserError(f"has a mask with bits beyond its {count} weights")
    kept = int(bits.sum())
    if values.shape != (kept,):
        raise UserError(f"has {values.numel()} values where its mask keeps {kept}")
    weight = torch.zeros(count)
    weight[torch.from_numpy(bits[:count]).bool()] = values.float()
    return weight.view(shape)
