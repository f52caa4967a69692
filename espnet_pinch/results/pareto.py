"""WER against speed: what a user gets for the errors that a method costs."""

import os
import statistics

from matplotlib.figure import Figure

from espnet_pinch.core.registry import UNPRUNED, all_methods
from espnet_pinch.results.plots import name_axes, save
from espnet_pinch.results.records import Results
from espnet_pinch.results.sweep import BASELINE, System, common_sets, rate_title


def plot_pareto(upstream: str, found: list[System], path: str | os.PathLike) -> bool:
    """Draw WER of all test sets together against how many times as fast as its baseline a model is.

    Both times of a run were measured side by side (``SystemFigures.forward_seconds``), in dense float32. A curve joins
    the targets of a method with the same settings; its points are means over seeds.

    Args:
        upstream: its name.
        found: the systems of this upstream.
        path: suffix is replaced.

    Returns: False where there is nothing to draw, as no run's speed was measured.
    """
    timed = [s for s in found if s.method != BASELINE and all(speed_up(run) for run in s.runs)]
    sets = common_sets(found, tests=True) if found else ()
    if not timed or not sets:
        return False
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for number, (method, variant) in enumerate(dict.fromkeys((s.method, s.variant) for s in timed)):
        curve = [s for s in timed if (s.method, s.variant) == (method, variant)]
        points = sorted((statistics.fmean(map(speed_up, s.runs)), statistics.fmean(s.wers(sets))) for s in curve)
        facts = all_methods()[method]
        line = "" if method == UNPRUNED else ("-", "-.", ":")[number % 3]
        label = f"{facts.label}; {variant}" if variant else facts.label
        axis.plot(*zip(*points), color=facts.colour, marker=facts.marker, linestyle=line, label=label)
    for baseline in (s for s in found if s.method == BASELINE):
        axis.plot(1.0, baseline.wers(sets)[0], "k*", markersize=10, label="baseline")
    name_axes(axis, f"{upstream}: {', '.join(sets)}", "times as fast as the baseline", f"{rate_title(found)}, %")
    save(figure, path)
    return True


def speed_up(run: Results) -> float:
    """How many times as fast as its baseline a run's model is; 0.0 where that was not measured."""
    own, baseline = run.figures.forward_seconds, run.baseline.forward_seconds
    return baseline / own if own and baseline else 0.0


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (speed, cost) that no other point beats: none is as fast at less cost, nor as cheap and faster.

    >>> front([(1.0, 5.0), (2.0, 6.0), (1.5, 7.0), (2.0, 8.0)])
    [(1.0, 5.0), (2.0, 6.0)]
    """
    best: list[tuple[float, float]] = []
    for speed, cost in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if not best or cost < best[-1][1]:
            best.append((speed, cost))
    return best[::-1]
