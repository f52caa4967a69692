"""Pictures of a run, each as PNG and SVG."""

import itertools
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which takes the caller's backend: no picture is shown

from espnet_pinch.asr import history as course
from espnet_pinch.asr.family import short_names
from espnet_pinch.core.parameters import LayerCount, Width
from espnet_pinch.core.registry import UNPRUNED, all_methods
from espnet_pinch.files import whole_file

SPARE_COLOURS = ("tab:orange", "tab:brown", "tab:pink", "tab:olive", "tab:cyan", "black")  # no method's
SPARE_MARKERS = "v<>pPX*hd"
MOST_INSIDE = 5  # names; a longer legend would hide curves, and stands under the axes
LEGEND_WIDTH = 48  # characters of a line; a longer one would leave no room for the curves
LEGEND_LINE = 0.17  # inches
CURVES = 4.6  # inches, the height of a picture without a legend under the axes


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write ``path`` with .png and with .svg."""
    for suffix in (".png", ".svg"):
        metadata = {"Date": None} if suffix == ".svg" else None
        # With the salt the same picture is the same file.
        with whole_file(Path(path).with_suffix(suffix)) as tmp, matplotlib.rc_context({"svg.hashsalt": "espnet_pinch"}):
            figure.savefig(tmp, format=suffix[1:], dpi=120, bbox_inches="tight", metadata=metadata)


def name_axes(axis: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, grid and legend."""
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    labels = [textwrap.fill(label, LEGEND_WIDTH) for label in labels]
    below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.2)) if len(handles) > MOST_INSIDE else {}
    axis.legend(handles, labels, fontsize=8, **below)
    if below:
        figure, lines = cast(Figure, axis.figure), sum(1 + label.count("\n") for label in labels)
        figure.set_figheight(max(figure.get_figheight(), CURVES + LEGEND_LINE * lines))


def styles(curves: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict]:
    """Colour, marker and line of each (method, variant): the method's own of its first variant, others of the rest.

    Without pruning points are not joined: there is nothing between them.
    """
    found: dict[tuple[str, str], dict] = {}
    spare = zip(itertools.cycle(SPARE_COLOURS), itertools.cycle(SPARE_MARKERS))
    for method, variant in curves:
        facts = all_methods()[method]
        first = all(method != other for other, _ in found)
        colour, marker = (facts.colour, facts.marker) if first else next(spare)
        line = "" if method == UNPRUNED else "-" if first else "-."
        found[method, variant] = dict(color=colour, marker=marker, linestyle=line)
    return found


def plot_course(history: dict[str, dict], path: str | os.PathLike, target: float | None = None) -> None:
    """The course of a run over its iterations: loss, dev error rates, and what its method logs of sparsity, tau, eta.

    Args:
        history: ``espnet_pinch.asr.history.read``.
        path: suffix is replaced.
        target: drawn as a line, a sparsity, or a fraction of the multiplications where they are logged; None for a run
            that does not prune.
    """
    points = [point for phases in history.values() for point in phases["train"]["points"]]
    ends = [phases["train"]["points"][-1]["iteration"] for phases in history.values()]
    logged = [key for key in ("sparsity", "macs_saved", "tau", "eta") if key in points[0]]
    shares = {"sparsity": "sparsity, %", "macs_saved": "mult. saved, %"}
    aim = "macs_saved" if "macs_saved" in logged else "sparsity"
    head = course.head_of(history)
    rows = [head.loss_title, "dev errors, %", *(shares.get(key, key) for key in logged)]
    figure = Figure(figsize=(7, 1.7 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True)
    iterations = [point["iteration"] for point in points]

    def line(axis, key, scale=1.0, label=None):
        values = [np.nan if point[key] is None else scale * point[key] for point in points]  # None: all steps skipped
        axis.plot(iterations, values, color="tab:blue", label=label)

    line(axes[0], head.loss, label="training")
    axes[0].plot(ends, [p["valid"]["loss"] for p in history.values()], "o-", color="tab:orange", label="dev")
    axes[0].set_yscale("log")
    axes[0].legend()
    for (name, rate), marker in zip(head.rates.items(), ("o-", "s--")):
        rates = [100 * phases["valid"][name] for phases in history.values()]
        axes[1].plot(ends, rates, marker, color="tab:orange", label=rate.title)
    axes[1].set_ylim(bottom=0)
    axes[1].legend()
    for axis, key in zip(axes[2:], logged):
        line(axis, key, 100 if key in shares else 1)
        if key == aim and target is not None:
            axis.axhline(100 * target, color="tab:gray", linestyle="--", label=f"target {100 * target:g} %")
            axis.legend(loc="lower right")
    for axis, name in zip(axes, rows):
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("iteration")
    save(figure, path)


def plot_widths(widths: dict[str, Width], path: str | os.PathLike) -> None:
    """The units that are left of every group, a panel for each kind: filters, channels, heads.

    Args:
        widths: by the name of the group's module, such as "encoder.layers.3.attention".
        path: suffix is replaced.
    """
    kinds = [kind for kind in ("filters", "channels", "heads") if any(w.kind == kind for w in widths.values())]
    figure = Figure(figsize=(7, 1.9 * len(kinds) + 0.6), layout="constrained")
    axes = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axis, kind in zip(axes, kinds):
        found = [(name, width) for name, width in widths.items() if width.kind == kind]
        places = range(len(found))
        axis.bar(places, [width.units for _, width in found], color="lightgray")
        bars = axis.bar(places, [width.left for _, width in found], color="tab:blue")
        axis.bar_label(bars, fontsize=8)
        labels = [name.rpartition("layers.")[2].partition(".") for name, _ in found]
        several = len({number for number, _, _ in labels}) < len(labels)  # networks in a block
        axis.set_xticks(places, [f"{n} {rest}" if several else n for n, _, rest in labels], fontsize=8)
        axis.set_ylabel(f"{kind} left")
        axis.set_xlabel("convolution" if kind == "filters" else "Transformer block")
        axis.margins(y=0.15)
    save(figure, path)


def plot_layers(layers: dict[str, LayerCount], path: str | os.PathLike) -> None:
    """Sparsity of every gated layer of the Transformer: blocks across, the linears of a block down.

    Gated convolutions are left out: ``plot_widths`` shows them.

    Args:
        layers: by names such as "encoder.layers.3.attention.q_proj".
        path: suffix is replaced.
    """
    blocks: dict[str, dict[str, float]] = {}
    for name, layer in layers.items():
        front, _, rest = name.rpartition("layers.")
        if not front.endswith("conv_") and front + rest != name:
            block, _, linear = rest.partition(".")
            blocks.setdefault(block, {})[linear] = 100 * layer.sparsity
    names = short_names()
    linears = list(dict.fromkeys(linear for row in blocks.values() for linear in row))
    linears.sort(key=lambda name: list(names).index(name) if name in names else len(names))
    values = np.array([[row.get(linear, np.nan) for row in blocks.values()] for linear in linears])
    figure = Figure(figsize=(1.8 + 0.75 * len(blocks), 1.2 + 0.5 * len(linears)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value < 60 else "black"
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_yticks(range(len(linears)), [names.get(linear, linear) for linear in linears])
    axis.set_xticks(range(len(blocks)), list(blocks))
    axis.set_xlabel("Transformer block")
    figure.colorbar(image, label="sparsity, %")
    save(figure, path)
