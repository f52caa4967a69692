"""A model of torch in fewer bits, without the convolutions that oneDNN gets wrong in bfloat16."""

import copy

import torch
from torch import nn

from espnet_pinch.asr.pruned import PrunedModel

# Largest difference of a rounded convolution, as a fraction of its largest value; bfloat16 alone explains 0.005.
TOLERANCE = 0.05


@torch.no_grad()
def to_dtype(model: PrunedModel, dtype: torch.dtype) -> list[str]:
    """Round a model, in place, and let it compute in ``dtype``. Its waveforms and logits stay float32.

    On some CPUs (seen on one with AMX), oneDNN in torch 2.11 returns wrong values in bfloat16 for convolutions with few
    channels and large strides. So each convolution with a stride is tried, and one that is wrong stays in float32.

    Returns: the names of these convolutions.
    """
    upstream = model.frontend.upstream
    convolutions = {n: m for n, m in upstream.named_modules() if isinstance(m, nn.Conv1d) and m.stride != (1,)}
    exact = {name: copy.deepcopy(module) for name, module in convolutions.items() if not is_right(module, dtype)}
    upstream.to(dtype)
    model.head.to(dtype)
    for name, module in exact.items():
        module.register_forward_pre_hook(lambda module, inputs: inputs[0].float())
        module.register_forward_hook(lambda module, inputs, output: output.to(dtype))
        upstream.set_submodule(name, module)
    return list(exact)


def is_right(convolution: nn.Conv1d, dtype: torch.dtype) -> bool:
    """Whether a convolution in ``dtype`` is that in float32, within rounding, on noise."""
    [kernel], [stride] = convolution.kernel_size, convolution.stride
    noise = torch.randn(1, convolution.in_channels, kernel + 99 * stride, generator=torch.Generator().manual_seed(0))
    noise = noise.to(convolution.weight.device)
    weight, groups = convolution.weight, convolution.groups
    want = nn.functional.conv1d(noise, weight, stride=stride, groups=groups)
    got = nn.functional.conv1d(noise.to(dtype), weight.to(dtype), stride=stride, groups=groups)
    return bool((got.float() - want).abs().max() <= TOLERANCE * want.abs().max())
