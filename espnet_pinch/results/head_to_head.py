"""Methods against pinch at the same target sparsity: word errors of all test sets, and whether they differ."""

from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np

from espnet_pinch.alignment import align
from espnet_pinch.core.registry import DEFAULT_METHOD
from espnet_pinch.results.records import Results
from espnet_pinch.results.scoring import join, read_texts
from espnet_pinch.results.significance import bootstrap
from espnet_pinch.results.sweep import BASELINE, System, common_sets
from espnet_pinch.results.tables import title

NO_TRANSCRIPTS = "no transcripts"


def head_to_head(found: list[System]) -> tuple[list[str], list[list[str]]]:
    """Every pruned system beside pinch at the same target, on the seeds that both have: head and rows.

    Of several settings of pinch the others are compared with the one that was run most, which the head names. The
    interval is by paired bootstrap over utterances; an utterance is drawn with all of its seeds, which are not
    independent of each other.

    Args:
        found: the systems of one upstream.
    """
    pinched = [s for s in found if s.method == DEFAULT_METHOD]
    runs_of: Counter[str] = Counter()
    for system in pinched:
        runs_of[system.variant] += len(system.runs)
    sets = common_sets(found, tests=True)
    if not runs_of or not sets:
        return [], []
    variant = runs_of.most_common(1)[0][0]
    ours = {s.target: s for s in pinched if s.variant == variant}
    others = [s for s in found if s.target in ours and s.method != BASELINE and s is not ours[s.target]]
    head = ["target %", "system", "runs", "sparsity reached %: pinch", "sparsity reached %"]
    unit = pinched[0].unit
    head += [
        f"test {unit.of}",
        "errors of pinch" + (f"; {variant}" if variant else ""),
        "errors",
        f"difference, points of {unit.title}",
        "95 % interval",
        "verdict",
    ]
    rows = [_row(ours[s.target], s, sets) for s in sorted(others, key=lambda s: s.target)]
    return head, [row for row in rows if row]


def _row(pinch: System, other: System, sets: tuple[str, ...]) -> list[str]:
    pairs = _pairs(pinch, other)
    if not pairs:
        return []
    reached = [f"{100 * fmean(run.figures.sparsity for run in runs):.2f}" for runs in zip(*pairs)]
    start = [f"{100 * other.target:g}", title(other.method, other.variant), str(len(pairs)), *reached]
    words: Counter[tuple[str, str]] = Counter()
    errors: defaultdict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(2, dtype=int))
    try:
        for pair in pairs:
            for side, run in enumerate(pair):
                for key, (wrong, length) in _utterances(run, sets).items():
                    errors[key][side] += wrong
                    words[key] += length * (side == 0)
    except FileNotFoundError:
        return [*start, *[NO_TRANSCRIPTS] * 6]
    counts = np.stack([errors[key] for key in words])
    test = bootstrap(counts[:, 1] - counts[:, 0], np.array(list(words.values())))
    low, high = test.bootstrap_low, test.bootstrap_high
    verdict = "worse than pinch" if low > 0 else "better than pinch" if high < 0 else "no difference shown"
    totals = [str(sum(words.values())), *map(str, counts.sum(axis=0).tolist())]
    return [*start, *totals, f"{test.wer_difference:+.2f}", f"{low:+.2f} to {high:+.2f}", verdict]


def _pairs(pinch: System, other: System) -> list[tuple[Results, Results]]:
    """Runs of both with the same seed."""
    by_seed = {run.seed: run for run in other.runs}
    return [(run, by_seed[run.seed]) for run in pinch.runs if run.seed in by_seed]


def _utterances(run: Results, sets: tuple[str, ...]) -> dict[tuple[str, str], tuple[int, int]]:
    """Errors and reference words (or characters, where these are counted first) of each utterance of these sets.

    Raises:
        FileNotFoundError: the transcripts or their references are gone.
        UserError: their ids differ.
    """
    found = {}
    for name in sets:
        hypothesis = Path(run.figures.experiment) / run.decoded / name / "text"
        references, texts = read_texts(Path(run.references) / name / "text", hypothesis)
        pairs = join(references, texts, str(hypothesis))
        for id_, pair in zip(references, pairs):
            reference, words = map(run.unit.split, pair)
            edits = align(reference.split(), words.split())
            found[name, id_] = len(edits) - edits.count("C"), len(reference.split())
    return found
