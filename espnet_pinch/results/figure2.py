"""Figure 2: WER against sparsity, a curve for each method; LibriSpeech has one panel for dev and one for test."""

import os
import statistics

from matplotlib.figure import Figure

from espnet_pinch.core.registry import UNPRUNED, all_methods
from espnet_pinch.results import paper
from espnet_pinch.results.plots import name_axes, save, styles
from espnet_pinch.results.sweep import BASELINE, System, common_sets, rate_title

# LibriSpeech's, by their titles.
PANELS: dict[str, tuple[str, ...]] = {
    "dev, clean and other": ("dev_clean", "dev_other"),
    "test, clean and other": ("test_clean", "test_other"),
}
# Reference words of LibriSpeech's sets, to weigh the paper's two error rates of a panel.
WORDS = {"dev_clean": 54402, "dev_other": 50948, "test_clean": 52576, "test_other": 52343}


def plot_figure2(upstream: str, found: list[System], path: str | os.PathLike) -> bool:
    """Draw the figure of one upstream, the sets of a panel together; False where there is nothing to draw.

    Ours are solid lines, the mean over seeds with its range; the paper's are dashed, on LibriSpeech's sets alone. An
    arrow marks the largest sparsity at which no run's WER is significantly higher than the baseline's on any set of
    the panel.

    Args:
        upstream: its name.
        found: the systems of this upstream.
        path: suffix is replaced.
    """
    curves = {name: method for name, method in all_methods().items() if name != UNPRUNED}
    printed = [row for row in paper.TABLE1 if row.upstream == upstream]
    panels = _panels(found) if found or printed else {}
    if not panels:
        return False
    own = dict.fromkeys((s.method, s.variant) for method in curves for s in found if s.method == method)
    looks = styles(own)
    figure = Figure(figsize=(5.5 * len(panels), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (panel, sets) in zip(axes, panels.items()):
        theirs = printed if all(name in WORDS for name in sets) else []
        for method, facts in curves.items():
            name = facts.label
            for variant in (variant for other, variant in own if other == method):
                curve = [system for system in found if (system.method, system.variant) == (method, variant)]
                _draw(axis, curve, sets, f"{name}; {variant}" if variant else name, looks[method, variant])
            rows = [row for row in theirs if row.method == method]
            if rows:
                pooled = [_pooled(row, sets) for row in rows]
                style = dict(color=facts.colour, marker=facts.marker, fillstyle="none", alpha=0.7)
                axis.plot([100 * r.sparsity for r in rows], pooled, "--", label=f"{name}, paper", **style)
        for baseline in (system for system in found if system.method == BASELINE):
            axis.axhline(baseline.wers(sets)[0], color="black", linestyle=":", label="baseline")
        for row in (row for row in theirs if row.method == UNPRUNED):
            axis.axhline(_pooled(row, sets), color="black", linestyle="--", alpha=0.5, label="baseline, paper")
        name_axes(axis, f"{upstream}: {panel}", "sparsity, %", f"{rate_title(found)}, %")
    save(figure, path)
    return True


def _panels(found: list[System]) -> dict[str, tuple[str, ...]]:
    """``{title: sets}``: LibriSpeech's where there are no other sets, else one panel of the test sets."""
    if not found:
        return PANELS
    sets = common_sets(found)
    panels = {title: group for title, group in PANELS.items() if set(group) <= set(sets)}
    if sum(map(len, panels.values())) == len(sets):
        return panels
    tests = common_sets(found, tests=True)
    return {", ".join(tests): tests} if tests else {}


def _draw(axis, curve: list[System], sets: tuple[str, ...], name: str, style: dict) -> None:
    # Where it ended, which landing: paper leaves open.
    x = [100 * system.mean(lambda f: f.sparsity) for system in curve]
    wers = [system.wers(sets) for system in curve]
    y = [statistics.fmean(values) for values in wers]
    below, above = ([abs(pick(values) - mean) for values, mean in zip(wers, y)] for pick in (min, max))
    axis.errorbar(x, y, yerr=(below, above), capsize=3, label=name, **style)
    lossless = [(a, b) for a, b, system in zip(x, y, curve) if system.lossless(sets)]
    if lossless:
        arrow = dict(arrowstyle="-|>", color=style["color"], lw=2)
        axis.annotate("", max(lossless), xytext=(0, 28), textcoords="offset points", arrowprops=arrow)


def _pooled(row: paper.Table1Row, sets: tuple[str, ...]) -> float:
    words = sum(WORDS[name] for name in sets)
    return sum(row.wer[name.replace("_", "-")].percent * WORDS[name] for name in sets) / words
