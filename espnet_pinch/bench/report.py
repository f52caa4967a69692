"""A comparison as Markdown, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from espnet_pinch.asr.macs import PARTS
from espnet_pinch.bench.run import Comparison, Measured, Timing
from espnet_pinch.bench.side import shown
from espnet_pinch.files import write_json
from espnet_pinch.results.experiment import markdown_table
from espnet_pinch.results.unit import Unit, unit_of

USUAL = (1, 10)  # batch and seconds that sides are compared by, where they were timed


def usual(measured: Measured) -> Timing:
    """The timing that a side is compared by: one utterance of 10 s, or else the first."""
    return next((t for t in measured.timings if (t.batch, t.seconds) == USUAL), measured.timings[0])


def to_markdown(comparison: Comparison) -> str:
    """Tables of sizes, of speed, of errors, and what was left out."""
    request = comparison.request
    rounds = f"{request.repeats} rounds, {request.clock} time"
    sections = [f"Machine: {comparison.machine}; {rounds}.", _sizes(comparison), _speed(comparison)]
    if request.data:
        sections.append(_errors(comparison))
    if comparison.left_out:
        sides: dict[str, list[str]] = {}
        for side, reason in comparison.left_out.items():
            sides.setdefault(reason, []).append(side)
        lines = [f"- {'; '.join(names)}: {reason}" for reason, names in sides.items()]
        sections.append("\n".join(["Left out:", "", *lines]))
    return "\n\n".join(sections) + "\n"


def _sizes(comparison: Comparison) -> str:
    head = ["model", "format", "MB", "M parameters", "of them 0, %"]
    head += [f"G multiplications of 10 s: {part}" for part in PARTS] + ["all but the head"]
    rows = []
    for model, size in comparison.sizes.items():
        zeros = f"{100 * size.zeros / size.parameters:.1f}"
        parts = [f"{size.macs[part] / 1e9:.3g}" for part in PARTS] + [f"{sum(size.macs.values()) / 1e9:.3g}"]
        rows.append(
            [
                shown(model, comparison.sizes),
                size.format,
                f"{size.bytes / 1e6:.2f}",
                f"{size.parameters / 1e6:.2f}",
                zeros,
                *parts,
            ]
        )
    return "\n".join(markdown_table(head, rows))


def _speed(comparison: Comparison) -> str:
    first = comparison.sides[0]
    shapes = [f"{t.batch} x {t.seconds:g} s" for t in first.timings]
    head = ["model", "runtime", "dtype", "load s", "memory MB", *shapes]
    chosen = usual(first)
    head.append(f"times as fast as the first, {chosen.batch} x {chosen.seconds:g} s")
    rows = []
    for m in comparison.sides:
        times = [f"{t.best:.3g} ({t.rtf:.3g})" for t in m.timings]
        own = [
            shown(m.side.model, comparison.sizes),
            m.side.runtime,
            m.side.dtype,
            f"{m.load_seconds:.2f}",
            f"{(m.peak_bytes - m.held_bytes) / 1e6:.0f}",
        ]
        rows.append([*own, *times, f"{usual(m).faster:.2f}"])
    note = (
        "Seconds for a batch, the best round, from waveforms to logits; in brackets the real-time factor.\n"
        "Memory is the most that a process has held, without what it held before it loaded the model."
    )
    return "\n".join([note, "", *markdown_table(head, rows)])


def _errors(comparison: Comparison) -> str:
    sets = [data.name for data in comparison.request.data]
    unit = _unit(comparison)
    head = ["model", "runtime", "dtype"]
    for name in sets:
        head += [f"{name}: {unit.title} % (errors/{unit.of})", "change, points", "texts that differ"]
    rows = []
    for m in comparison.sides:
        row = [shown(m.side.model, comparison.sizes), m.side.runtime, m.side.dtype]
        for name in sets:
            score, test = m.wer[name], m.significance.get(name)
            change = f"{test.wer_difference:+.2f}{'' if test.significant_increase else ' †'}" if test else ""
            row += [f"{100 * score.wer:.2f} ({score.errors}/{score.words})", change]
            row.append(f"{m.texts_differing[name]} of {score.utterances}" if test else "")
        rows.append(row)
    note = f"Changes are from the first side; † marks one that is no significant increase ({unit.test}, alpha = 0.05)."
    return "\n".join([note, "", *markdown_table(head, rows)])


def _unit(comparison: Comparison) -> Unit:
    """What the errors of the first model are counted in."""
    return unit_of(comparison.sizes[comparison.sides[0].side.model].task)


def to_json(comparison: Comparison, path: str | os.PathLike) -> None:
    """Write all figures: seconds, bytes, fractions."""
    request = dataclasses.asdict(comparison.request)
    request |= {key: [str(item) for item in request[key]] for key in ("models", "data")}
    sides = []
    for m in comparison.sides:
        timings = [dataclasses.asdict(t) | {"best": t.best, "median": t.median, "rtf": t.rtf} for t in m.timings]
        sides.append({**dataclasses.asdict(m.side), **dataclasses.asdict(m), "timings": timings})
        del sides[-1]["side"]
    models = {model: dataclasses.asdict(size) for model, size in comparison.sizes.items()}
    whole = {"machine": comparison.machine, "request": request, "models": models, "sides": sides}
    write_json(path, {**whole, "left_out": comparison.left_out})


def plot(comparison: Comparison, path: str | os.PathLike) -> None:
    """Draw speed against WER of all data directories together, or against bytes where nothing was transcribed.

    A colour is a model, a marker a runtime and dtype. A line joins the sides that no other beats in both.

    Args:
        path: suffix is replaced; a PNG and an SVG are written.
    """
    from matplotlib.figure import Figure

    from espnet_pinch.results.pareto import front
    from espnet_pinch.results.plots import name_axes, save

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axis = figure.subplots()
    ways = dict.fromkeys((m.side.runtime, m.side.dtype) for m in comparison.sides)
    colours = {model: f"C{i % 10}" for i, model in enumerate(comparison.sizes)}
    markers = {way: "os^vDPX*<>"[i % 10] for i, way in enumerate(ways)}
    for model, colour in colours.items():
        axis.plot([], [], color=colour, linewidth=4, label=shown(model, comparison.sizes))
    for way, marker in markers.items():
        axis.plot([], [], color="black", marker=marker, linestyle="", label=", ".join(way))
    points = [(usual(m).faster, _cost(comparison, m)) for m in comparison.sides]
    for point, m in zip(points, comparison.sides):
        axis.plot(*point, color=colours[m.side.model], marker=markers[m.side.runtime, m.side.dtype], linestyle="")
    axis.plot(*zip(*front(points)), color="gray", linewidth=1, zorder=0)
    chosen = usual(comparison.sides[0])
    x = f"times as fast as the first, {chosen.batch} x {chosen.seconds:g} s"
    sets = ", ".join(data.name for data in comparison.request.data)
    y = f"{_unit(comparison).title} of {sets}, %" if sets else "MB of weights"
    name_axes(axis, f"{comparison.request.threads} thread(s)", x, y)
    save(figure, Path(path))


def _cost(comparison: Comparison, measured: Measured) -> float:
    if not measured.wer:
        return comparison.sizes[measured.side.model].bytes / 1e6
    scores = measured.wer.values()
    return 100 * sum(score.errors for score in scores) / sum(score.words for score in scores)
