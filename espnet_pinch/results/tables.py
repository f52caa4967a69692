"""Tables over all systems of a sweep: the paper's, with its figures in columns of their own, and our WER and costs."""

import csv
import io
import statistics
from collections.abc import Callable

from espnet_pinch.core.registry import UNPRUNED, find_method
from espnet_pinch.results import paper
from espnet_pinch.results.experiment import markdown_table
from espnet_pinch.results.pareto import speed_up
from espnet_pinch.results.records import Results
from espnet_pinch.results.sweep import BASELINE, System, all_sets, common_sets, rank, rate_title

NOT_RUN = "not run"


def table1(upstream: str, found: list[System]) -> tuple[list[str], list[list[str]]]:
    """Table 1 of one upstream: head and rows. WER in per cent; † no significant increase over the baseline.

    A set that is none of the paper's has no column of it.

    Args:
        upstream: its name.
        found: the systems of this upstream.
    """
    papers = {name.replace("-", "_"): name for name in paper.SETS}
    sets = all_sets(found) or tuple(papers)
    in_paper = [row for row in paper.TABLE1 if row.upstream == upstream]
    theirs = {(BASELINE if row.method == UNPRUNED else row.method, row.sparsity): row for row in in_paper}
    entries: list[tuple[str, str, float, System | None, paper.Table1Row | None]] = []
    run = set()
    for s in found:
        place = s.method, round(s.target, 4)
        entries.append((s.method, s.variant, place[1], s, theirs.get(place) if s.is_papers else None))
        if s.is_papers:
            run.add(place)
    entries += [(method, "", target, None, theirs[method, target]) for method, target in theirs.keys() - run]
    entries.sort(key=lambda entry: (rank(entry[0]), *entry[1:3]))
    head = ["system", "target %", *_pair("params M", in_paper)]
    for name in sets:
        head += _pair(name, in_paper if name in papers else [])
    rows = []
    for method, variant, target, system, row in entries:
        line = [title(method, variant), f"{100 * target:g}"]
        kept = f"{system.mean(lambda f: f.params_kept) / 1e6:.2f}" if system else None
        line += _cells(f"{row.params_m:.2f}" if row else None, kept, in_paper)
        for name in sets:
            printed = str(row.wer[papers[name]]) if row and name in papers else None
            own = _wer(system, (name,)) if system else None
            line += _cells(printed, own, in_paper if name in papers else [])
        rows.append(line)
    return head, rows


def by_target(found: list[System]) -> tuple[list[str], list[list[str]]]:
    """Our own WER of all test sets together, systems down and targets across: head and rows.

    Args:
        found: the systems of one upstream.
    """
    targets = sorted({s.target for s in found})
    sets = common_sets(found, tests=True)
    ours: dict[str, dict[float, str]] = {}
    for s in found:
        ours.setdefault(title(s.method, s.variant), {})[s.target] = _wer(s, sets)
    head = [f"{rate_title(found)} % of all test sets", *(f"{100 * target:g} %" for target in targets)]
    unpruned = {title(BASELINE, ""), title(UNPRUNED, "")}
    gap = {name: "-" if name in unpruned else NOT_RUN for name in ours}
    return head, [[name, *(cells.get(t, gap[name] if t else "-") for t in targets)] for name, cells in ours.items()]


def table2(found: list[System]) -> tuple[list[str], list[list[str]]]:
    """Table 2: earlier work as the paper prints it, and the paper's systems beside ours; WER on test-clean.

    Args:
        found: the systems of all upstreams.
    """
    head = ["system", "train hours", "params M: paper", "ours", "ratio: paper", "ours"]
    head += ["time: paper", "ours", "test-clean WER %: paper", "ours"]
    alike = [system for system in found if system.is_papers]
    by_runs = sorted(alike, key=lambda s: len(s.runs))  # of several variants the one that was run most
    ours: dict[tuple, System] = {(s.upstream, s.method, round(s.target, 4)): s for s in by_runs}
    rows = []
    for row in paper.TABLE2:
        system = ours.get((row.upstream, row.method, row.sparsity))
        own = [NOT_RUN if row.upstream else "-"] * 4
        if system:
            cost = f"{system.mean(lambda f: f.seconds) / 3600:.1f} h, {system.mean(lambda f: f.iterations):.0f} it"
            ratio = f"{system.mean(lambda f: f.compression_ratio):.2f}"
            own = [f"{system.mean(lambda f: f.params_kept) / 1e6:.2f}", ratio, cost, _wer(system, ("test_clean",))]
        printed = [_number(row.params_m), _number(row.ratio), row.time or "-", f"{row.wer:.2f}{'*' * row.superb}"]
        rows.append([row.system, str(row.train_hours), *(cell for pair in zip(printed, own) for cell in pair)])
    return head, rows


def costs(found: list[System]) -> tuple[list[str], list[list[str]]]:
    """What the paper leaves out: sparsity reached, multiplications, speed, and what the training took."""
    head = ["system", "target %", "runs", "sparsity reached %", "multiplications %", "times as fast", "file MB"]
    head += ["extra parameters", "hours", "iterations", "peak memory GB", "device"]
    rows = [
        [
            title(s.method, s.variant),
            f"{100 * s.target:g}",
            str(len(s.runs)),
            f"{100 * s.mean(lambda f: f.sparsity):.3f}",
            _mean(s, lambda run: 100 * run.figures.macs_kept),
            _mean(s, speed_up) if s.method != BASELINE else "1.00",
            _mean(s, lambda run: (run.figures.file_bytes or 0) / 1e6),
            f"{s.runs[0].figures.extra_trained_parameters}",
            f"{s.mean(lambda f: f.seconds) / 3600:.2f}",
            f"{s.mean(lambda f: f.iterations):.0f}",
            f"{s.mean(lambda f: f.peak_memory_bytes) / 1e9:.2f}",
            s.runs[0].figures.device or ("not recorded" if s.mean(lambda f: f.iterations) else "not trained here"),
        ]
        for s in found
    ]
    return head, rows


def _mean(system: System, figure: Callable[[Results], float]) -> str:
    """The mean over runs; "-" where it is 0 for one of them, as it was not measured."""
    values = [figure(run) for run in system.runs]
    return f"{statistics.fmean(values):.2f}" if all(values) else "-"


def runs_csv(found: list[System]) -> str:
    """One line for each run and set: counts, error rates, significance."""
    keys = ["wer", "errors", "words", "cer"]
    tests = ["wer_difference", "bootstrap_low", "bootstrap_high", "segments", "mean_difference"]
    tests += ["p_two_sided", "p_one_sided"]
    head = ["upstream", "method", "variant", "target_sparsity", "seed", "sparsity", "params_kept", "set", *keys, *tests]
    lines = []
    for system in found:
        for run in system.runs:
            seed = "" if system.method == BASELINE else run.seed
            own = [system.upstream, system.method, system.variant, system.target, seed]
            own += [run.figures.sparsity, run.figures.params_kept]
            for name, score in run.figures.wer.items():
                test = run.significance.get(name)
                line = [*own, name, *(getattr(score, key) for key in keys)]
                line += [getattr(test, key) if test else "" for key in tests]
                lines.append([*line, bool(test and test.significant_increase)])
    return to_csv([*head, "significant_increase"], lines)


def to_csv(head: list[str], rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def to_markdown(table: tuple[list[str], list[list[str]]]) -> list[str]:
    return markdown_table(*table)


def title(method: str, variant: str) -> str:
    """A system's name in a table's first column."""
    name = "baseline, not pruned" if method == BASELINE else find_method(method).title
    return name + (f"; {variant}" if variant else "")


def _wer(system: System, sets: tuple[str, ...]) -> str:
    """Of the sets together: mean over the runs, with the standard deviation of several, and the dagger."""
    if not sets or any(name not in system.sets for name in sets):
        return NOT_RUN
    wers = system.wers(sets)
    spread = f" ± {statistics.stdev(wers):.2f}" if len(wers) > 1 else ""
    dagger = "†" if system.method != BASELINE and system.lossless(sets) else ""
    return f"{statistics.fmean(wers):.2f}{spread}{dagger}"


def _pair(heading: str, in_paper: list) -> list[str]:
    return [f"{heading}: paper", "ours"] if in_paper else [heading]


def _cells(printed: str | None, own: str | None, in_paper: list) -> list[str]:
    return [printed or "-", own or NOT_RUN] if in_paper else [own or NOT_RUN]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
