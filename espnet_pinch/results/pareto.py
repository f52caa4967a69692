"""WER against speed, multiplications and bytes: what a user gets for the errors that a method costs."""

import dataclasses
import os
import statistics
from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from espnet_pinch.core.registry import all_methods
from espnet_pinch.results.plots import name_axes, save, styles
from espnet_pinch.results.records import Results
from espnet_pinch.results.sweep import BASELINE, System, common_sets, rate_title


@dataclasses.dataclass(frozen=True)
class Axis:
    """What the errors are drawn against.

    Attributes:
        name: of the picture's file.
        label: of the axis.
        of_run: the figure of a run; 0.0 where it was not measured.
        of_baseline: the same of the baseline beside it.
        log: draw it on a logarithmic scale.
    """

    name: str
    label: str
    of_run: Callable[[Results], float]
    of_baseline: Callable[[Results], float]
    log: bool = False


def plot_pareto(upstream: str, found: list[System], path: str | os.PathLike, axis: Axis) -> bool:
    """Draw WER of all test sets together against how fast or how small a model is.

    A curve joins the targets of a method with the same settings; its points are means over seeds.

    Args:
        upstream: its name.
        found: the systems of this upstream.
        path: suffix is replaced.
        axis: such as one of ``AXES``.

    Returns: False where there is nothing to draw, as the figure was measured of no run.
    """
    shown = [s for s in found if s.method != BASELINE and all(axis.of_run(run) for run in s.runs)]
    sets = common_sets(found, tests=True) if found else ()
    if not shown or not sets:
        return False
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    place = figure.subplots()
    for (method, variant), style in styles(dict.fromkeys((s.method, s.variant) for s in shown)).items():
        curve = [s for s in shown if (s.method, s.variant) == (method, variant)]
        points = sorted((statistics.fmean(map(axis.of_run, s.runs)), statistics.fmean(s.wers(sets))) for s in curve)
        label = all_methods()[method].label + (f"; {variant}" if variant else "")
        place.plot(*zip(*points), label=label, **style)
    for baseline in (s for s in found if s.method == BASELINE):
        at = axis.of_baseline(baseline.runs[0])
        if at:
            place.plot(at, baseline.wers(sets)[0], "k*", markersize=10, label="baseline")
    if axis.log:
        place.set_xscale("log")
        place.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        place.xaxis.set_major_formatter("{x:g}")
        place.xaxis.set_minor_locator(NullLocator())
    name_axes(place, f"{upstream}: {', '.join(sets)}", axis.label, f"{rate_title(found)}, %")
    save(figure, path)
    return True


def speed_up(run: Results) -> float:
    """How many times as fast as its baseline a run's model is; 0.0 where that was not measured."""
    own, baseline = run.figures.forward_seconds, run.baseline.forward_seconds
    return baseline / own if own and baseline else 0.0


MACS = Axis("macs", "multiplications left, %", lambda run: 100 * run.figures.macs_kept, lambda run: 100.0)
# Times of a run and its baseline were measured side by side, in dense float32 (``SystemFigures.forward_seconds``).
AXES = (
    Axis("pareto", "times as fast as the baseline", speed_up, lambda run: 1.0),
    Axis(
        "bytes",
        "MB of the smallest file that computes the same",
        lambda run: (run.figures.file_bytes or 0) / 1e6,
        lambda run: (run.baseline.file_bytes or 0) / 1e6,
        log=True,
    ),
    MACS,
)


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
