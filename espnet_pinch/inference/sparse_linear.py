"""Linear layers of a pruned model that run as sparse products on the CPU, if that is faster.

Unstructured sparsity alone does not save time, because a dense product multiplies the zeros too. ``use_backend``
measures the linear layers of a folded model and replaces those that get faster.
"""

import inspect
import re

import numba
import torch
from torch import Tensor, nn

from espnet_pinch.core.attach import TRANSFORMER_LINEARS, find_linears, replace_module
from espnet_pinch.errors import UserError
from espnet_pinch.inference.spmm import FRAMES, TILE, spmm
from espnet_pinch.inference.timing import seconds

BACKENDS = ("auto", "dense", "sparse")

# A sparse layer must take less than this fraction of the dense layer's time, so that noise never makes a model slower.
GAIN = 0.9

# {(out, in, sparsity bucket, frames, threads): whether sparse is faster}, measured once per process.
_faster: dict[tuple, bool] = {}


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with only the kept weights, for inference on a CPU in float32.

    The weight is a CSR matrix, with its tiles of ``TILE`` columns one below the other (``spmm``). Each kept weight
    takes 5 bytes. ``weight`` builds the dense matrix for code that reads it instead of calling the layer.

    Args:
        linear: a layer with a weight (out, in) that is 0 where it is pruned.

    Raises:
        UserError: the weights are not float32 on the CPU.

    >>> layer = SparseLinear(nn.Linear(4, 3))
    >>> with torch.inference_mode():
    ...     layer(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()  # (out, in)
        check_cpu_float32(weight, "SparseLinear")
        self.out_features, self.in_features = weight.shape
        padded = nn.functional.pad(weight, (0, -self.in_features % TILE))
        tiles = torch.cat(padded.split(TILE, dim=1))  # (tiles * out, TILE)
        kept = tiles != 0
        self.register_buffer("starts", nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).int())  # (tiles * out + 1,)
        self.register_buffer("columns", kept.nonzero()[:, 1].to(torch.uint8))  # (kept,)
        self.register_buffer("values", tiles[kept])  # (kept,)
        bias = weight.new_zeros(self.out_features) if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias)  # (out,)

    @property
    def weight(self) -> Tensor:
        tiles = self.values.new_zeros(len(self.starts) - 1, TILE)
        rows = torch.arange(len(tiles)).repeat_interleave(self.starts.diff())
        tiles[rows, self.columns.int()] = self.values
        return torch.cat(tiles.split(self.out_features), dim=1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if torch.is_grad_enabled() and x.requires_grad:
            raise UserError("SparseLinear has no backward pass: call the model under torch.inference_mode()")
        check_cpu_float32(x, "the input of a SparseLinear")
        if x.size(-1) != self.in_features:
            raise UserError(f"a SparseLinear with {self.in_features} input features got {x.size(-1)}")
        rows = x.reshape(-1, self.in_features).contiguous()  # (N, in)
        y = x.new_empty(len(rows), self.out_features)
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(threads)
        parts = -(-threads * FRAMES // max(len(rows), 1))  # of the weight's rows, if there are few frames per thread
        weight = (self.starts, self.columns, self.values, self.bias)
        spmm(*(tensor.numpy() for tensor in (*weight, rows, y)), parts)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        size = self.in_features * self.out_features
        return f"in_features={self.in_features}, out_features={self.out_features}, kept={len(self.values) / size:.3f}"


def check_cpu_float32(tensor: Tensor, name: str) -> None:
    """Raise UserError if ``tensor`` is not float32 on the CPU."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{name} is {dtype} on {tensor.device}; sparse products need float32 on cpu")


def use_backend(
    model: nn.Module, backend: str = "auto", layers: str = TRANSFORMER_LINEARS, frames: int = 500
) -> dict[str, str]:
    """Let linear layers of a folded model run as sparse products, in place.

    "sparse" replaces every matching layer, and "dense" replaces none. "auto" replaces those that get faster on this
    machine with torch's current number of threads. A layer stays dense if its parent reads its weight instead of
    calling it, such as the projections in WavLM's attention.

    Args:
        model: a model on the CPU, float32.
        backend: "auto", "dense" or "sparse".
        layers: regular expression that the names of the layers match (``re.search``).
        frames: number of frames for the measurement; 500 are 10 s of audio.

    Returns: ``{layer name: "dense" or "sparse"}``.

    Raises:
        UserError: the backend is unknown, no layer matches, or a layer is not float32 on the CPU.
    """
    if backend not in BACKENDS:
        raise UserError(f"the backend {backend!r} is not one of {', '.join(BACKENDS)}")
    chosen = dict.fromkeys(find_linears(model, layers), "dense")
    if backend == "dense":
        return chosen
    for name, linear in find_linears(model, layers).items():
        check_cpu_float32(linear.weight, f"the layer {name}")
        if _weight_is_read(model, name) or (backend == "auto" and not faster_sparse(linear, frames)):
            continue
        replace_module(model, name, SparseLinear(linear))
        chosen[name] = "sparse"
    return chosen


def faster_sparse(linear: nn.Linear, frames: int) -> bool:
    """Whether a layer takes at least a tenth less time as a sparse product.

    Measured once for all layers of the same shape whose sparsity is in the same range of 5 points.
    """
    sparsity = 1 - torch.count_nonzero(linear.weight).item() / linear.weight.numel()
    key = (*linear.weight.shape, int(20 * sparsity), frames, torch.get_num_threads())
    if key not in _faster:
        dense, sparse = seconds([linear, SparseLinear(linear)], torch.randn(frames, linear.in_features))
        _faster[key] = sparse < GAIN * dense
    return _faster[key]


def _weight_is_read(model: nn.Module, name: str) -> bool:
    """Whether the source of the module that holds the layer ``name`` mentions that layer's weight."""
    parent, _, child = name.rpartition(".")
    try:
        source = inspect.getsource(type(model.get_submodule(parent)))
    except (OSError, TypeError):  # no source: if it reads ``SparseLinear.weight``, it is correct but slow
        return False
    return re.search(rf"\bself\.{child}\.weight\b", source) is not None
