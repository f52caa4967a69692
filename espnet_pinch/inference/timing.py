"""How long functions take, side by side."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")

CLOCKS = {"wall": lambda: time.perf_counter(), "cpu": lambda: time.process_time()}


def take_turns(sides: Mapping[str, Callable[[], T]], repeats: int, warm_up: int = 1) -> dict[str, list[T]]:
    """What the calls of every side return. The sides take turns, so that other load on the machine affects all alike.

    Args:
        repeats: rounds that count; each calls every side once.
        warm_up: rounds before them that do not count.
    """
    results: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(-warm_up, repeats):
        for name, run in sides.items():
            result = run()
            if turn >= 0:
                results[name].append(result)
    return results


def in_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: str = "wall", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of the calls of every side, which take turns.

    Args:
        clock: "wall", or "cpu" for the processor time of all threads of this process.
        repeats, warm_up: as ``take_turns``.
    """
    return take_turns({name: partial(taken, run, CLOCKS[clock]) for name, run in sides.items()}, repeats, warm_up)


def taken(run: Callable[[], object], now: Callable[[], float]) -> float:
    """How far the clock ``now`` goes on during a call."""
    begin = now()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return now() - begin


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """``seconds`` as a multiple of ``base``: the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


@torch.inference_mode()
def seconds(functions: Sequence[Callable[[T], object]], x: T, repeats: int = 7) -> list[float]:
    """The shortest time of each function on ``x``. The functions take turns, and their first calls do not count."""
    found = in_turns({str(i): partial(run, x) for i, run in enumerate(functions)}, repeats)
    return [min(times) for times in found.values()]
