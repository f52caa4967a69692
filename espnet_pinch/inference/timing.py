"""How long functions take, side by side."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

CLOCKS = {"wall": lambda: time.perf_counter(), "cpu": lambda: time.process_time()}


def in_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: str = "wall", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of the calls of every side. The sides take turns, so that other load on the machine affects all alike.

    Args:
        repeats: rounds that count; each runs every side once.
        clock: "wall", or "cpu" for the processor time of all threads of this process.
        warm_up: rounds before them that do not count.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warm_up, repeats):
        for name, run in sides.items():
            begin = now()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            taken = now() - begin
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """``seconds`` as a multiple of ``base``: the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


@torch.inference_mode()
def seconds(functions: Sequence[Callable[[Tensor], object]], x: Tensor, repeats: int = 7) -> list[float]:
    """The shortest time of each function on ``x``. The functions take turns, and their first calls do not count."""
    taken = in_turns({str(i): lambda run=run: run(x) for i, run in enumerate(functions)}, repeats)
    return [min(times) for times in taken.values()]
