"""Is a system worse than its baseline? NIST's matched-pairs test, and a paired bootstrap of the WER difference.

MAPSSWE (matched pairs sentence-segment word error): L. Gillick and S. J. Cox, "Some statistical issues in the
comparison of speech recognition algorithms", ICASSP 1989, as sc_stats of NIST's SCTK computes it.

For classifiers McNemar's exact test is in its place (Q. McNemar, Psychometrika 12, 1947): under "they are alike" an
utterance that one of the two alone has wrong is as often the one's as the other's, so their number is binomial.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable

import numpy as np

from espnet_pinch.alignment import align
from espnet_pinch.results.records import Significance
from espnet_pinch.results.scoring import join, read_texts
from espnet_pinch.results.unit import ERROR, Unit

ALPHA = 0.05
BOUNDARY = 2  # consecutive words that both systems have right, which end a segment
RESAMPLES, SEED = 10_000, 0


@dataclasses.dataclass(frozen=True)
class MatchedPairs:
    """What MAPSSWE finds; ``Significance`` documents the fields."""

    segments: int
    mean_difference: float
    std: float
    z: float
    p_two_sided: float
    p_one_sided: float
    significant: bool
    significant_increase: bool


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """What the bootstrap finds; ``Significance`` documents the fields."""

    wer_difference: float
    bootstrap_low: float
    bootstrap_high: float
    bootstrap_worse: float


def compare_files(
    reference: str | os.PathLike,
    baseline: str | os.PathLike,
    hypothesis: str | os.PathLike,
    unit: Unit = Unit(),  # noqa: B008  (it is frozen)
) -> Significance:
    """``compare`` of three Kaldi ``text`` files.

    Args:
        unit: what is counted as a word.

    Raises:
        FileNotFoundError, UserError: a file is missing or damaged, or their ids differ.
    """
    texts = read_texts(reference, baseline, hypothesis)
    references, one, other = ({id_: unit.split(text) for id_, text in table.items()} for table in texts)
    return compare(references, one, other, (str(baseline), str(hypothesis)), mcnemar if unit.rate == ERROR else mapsswe)


def compare(
    references: dict[str, str],
    baseline: dict[str, str],
    hypothesis: dict[str, str],
    names: tuple[str, str] = ("baseline", "hypothesis"),
    test: Callable[[list[tuple[int, int]]], MatchedPairs] | None = None,
) -> Significance:
    """Compare a system with its baseline; every difference is the system's minus the baseline's, so more is worse.

    Args:
        references, baseline, hypothesis: ``{utterance id: words}``.
        names: of the two systems, for error messages.
        test: ``mapsswe`` if None, or ``mcnemar``.

    Returns: finite figures.

    Raises:
        UserError: the ids differ, or no reference has a word.

    >>> compare({"u": "ONE TWO"}, {"u": "ONE TWO"}, {"u": "ONE"}).mean_difference
    1.0
    """
    pairs = [join(references, texts, name) for texts, name in zip((baseline, hypothesis), names)]
    theirs, ours = ([align(r.split(), h.split()) for r, h in side] for side in pairs)
    found = [segments(a, b) for a, b in zip(theirs, ours)]
    errors = np.array([np.sum([(0, 0), *utterance], axis=0) for utterance in found])
    words = np.array([len(text.split()) for text in references.values()])
    baseline_errors, system_errors = errors.sum(axis=0).tolist()
    return Significance(
        utterances=len(words),
        words=int(words.sum()),
        baseline_errors=baseline_errors,
        errors=system_errors,
        **vars((test or mapsswe)([segment for utterance in found for segment in utterance])),
        **vars(bootstrap(errors[:, 1] - errors[:, 0], words)),
    )


def segments(one: str, other: str) -> list[tuple[int, int]]:
    """Word errors of two systems in each segment of one utterance.

    A segment ends at two consecutive reference words that both systems have right, with nothing inserted between
    them, and at the end of the utterance. A stretch without an error is no segment.

    Args:
        one, other: two hypotheses' alignments to the same reference (``alignment.align``).

    >>> segments("CSCCD", "CCCCC"), segments("CSCD", "CCCC")
    ([(1, 0), (1, 0)], [(2, 0)])
    """
    words = zip(one.replace("I", "") + "C", other.replace("I", "") + "C")  # the last one is the utterance's end
    insertions = zip(re.split("[CSD]", one), re.split("[CSD]", other))  # before each word, and at the end
    found, errors, right = [], (0, 0), 0
    for edits, inserted in zip(words, insertions):
        first, second = (e + len(run) + (edit != "C") for e, run, edit in zip(errors, inserted, edits))
        errors = (first, second)
        if any(inserted):
            right = 0
        right = right + 1 if edits == ("C", "C") else 0
        if right >= BOUNDARY and any(errors):
            found.append(errors)
            errors = (0, 0)
    return found + [errors] if any(errors) else found


def mapsswe(found: list[tuple[int, int]]) -> MatchedPairs:
    """The matched-pairs test on the (baseline's, system's) errors of the segments.

    ``Z = mean / (std / sqrt(n))`` of the differences, std with n - 1, taken as normally distributed. Where all
    segments differ alike Z has no value: ``z = 0`` and ``p_two_sided = 1`` are what sc_stats makes of it. That would
    grant "no increase" to a system that is worse in each of many segments, so the one-sided p is then the sign
    test's, ``2^-n``.
    """
    differences = np.array([b - a for a, b in found], dtype=float)
    n = len(differences)
    mean = differences.mean() if n else 0.0
    std = differences.std(ddof=1) if n > 1 else 0.0
    z = mean / (std / math.sqrt(n)) if std else 0.0
    two_sided, one_sided = math.erfc(abs(z) / math.sqrt(2)), math.erfc(z / math.sqrt(2)) / 2
    if mean and not std:
        one_sided = 0.5**n if mean > 0 else 1.0
    return MatchedPairs(
        segments=n,
        mean_difference=float(mean),
        std=float(std),
        z=float(z),
        p_two_sided=two_sided,
        p_one_sided=one_sided,
        significant=two_sided < ALPHA,
        significant_increase=one_sided < ALPHA,
    )


def mcnemar(found: list[tuple[int, int]]) -> MatchedPairs:
    """McNemar's exact test on the (baseline's, system's) errors, 0 or 1, of the utterances that one of them has wrong.

    >>> mcnemar([(0, 1), (0, 1), (0, 1), (1, 1)]).p_one_sided
    0.125
    """
    from scipy.stats import binomtest  # here: it takes a second or two

    differences = np.array([b - a for a, b in found if a != b], dtype=float)
    n, worse = len(differences), int((differences > 0).sum())
    two_sided, one_sided = (
        float(binomtest(worse, n, alternative=which).pvalue) if n else 1.0 for which in ("two-sided", "greater")
    )
    return MatchedPairs(
        segments=n,
        mean_difference=float(differences.mean()) if n else 0.0,
        std=float(differences.std(ddof=1)) if n > 1 else 0.0,
        z=0.0,
        p_two_sided=two_sided,
        p_one_sided=one_sided,
        significant=two_sided < ALPHA,
        significant_increase=one_sided < ALPHA,
    )


def bootstrap(differences: np.ndarray, words: np.ndarray) -> Bootstrap:
    """Paired bootstrap over utterances: both systems are resampled together (Bisani and Ney, ICASSP 2004).

    Args:
        differences: (utterances,) system's errors minus baseline's.
        words: (utterances,) reference words.
    """
    generator = np.random.default_rng(SEED)
    totals = np.empty((2, RESAMPLES))
    for i in range(RESAMPLES):
        drawn = generator.integers(len(words), size=len(words))
        totals[:, i] = differences[drawn].sum(), words[drawn].sum()
    points = 100 * totals[0] / np.maximum(totals[1], 1)  # a resample may hold empty references alone
    low, high = np.percentile(points, [2.5, 97.5])
    return Bootstrap(
        wer_difference=float(100 * differences.sum() / words.sum()),
        bootstrap_low=float(low),
        bootstrap_high=float(high),
        bootstrap_worse=float((points > 0).mean()),
    )
