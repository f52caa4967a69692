"""How long functions take, side by side."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@torch.inference_mode()
def seconds(functions: Sequence[Callable[[Tensor], Tensor]], x: Tensor, repeats: int = 7) -> list[float]:
    """The shortest time of each function on ``x``. The functions take turns, and their first calls do not count."""
    times = [[] for _ in functions]
    for _ in range(1 + repeats):
        for function, taken in zip(functions, times):
            start = time.perf_counter()
            function(x)
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]
