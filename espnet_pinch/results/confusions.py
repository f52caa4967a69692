"""What a system gets wrong beside its baseline: pairs of confused words, and the utterances that have become worst."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from espnet_pinch.alignment import align

NOTHING = "***"  # where a word was left out or put in, as sclite writes it
PAIRS, UTTERANCES = 20, 10  # rows that the report has


class Compared(NamedTuple):
    """An utterance in both systems.

    Attributes:
        name: its set and its id.
        reference, baseline, run: transcripts.
    """

    name: str
    reference: str
    baseline: str
    run: str


class _Aligned(NamedTuple):
    """A hypothesis along its reference.

    Attributes:
        words: for each reference word, the hypothesis' word, or ``NOTHING``.
        inserted: words that come before each reference word, and after the last.
        errors: their number.
    """

    words: list[str]
    inserted: list[list[str]]
    errors: int


def _along(reference: list[str], hypothesis: list[str]) -> _Aligned:
    edits = align(reference, hypothesis)
    words: list[str] = []
    inserted: list[list[str]] = [[]]
    left = iter(hypothesis)
    for edit in edits:
        if edit == "I":
            inserted[-1].append(next(left))
        else:
            words.append(NOTHING if edit == "D" else next(left))
            inserted.append([])
    return _Aligned(words, inserted, len(edits) - edits.count("C"))


def confusions(pairs: Sequence[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """How often each word was taken for another one; ``NOTHING`` stands for none.

    Args:
        pairs: reference and hypothesis of each utterance.

    >>> dict(confusions([("ONE TWO", "ONE TOO"), ("SIX", "")]))
    {('TWO', 'TOO'): 1, ('SIX', '***'): 1}
    """
    counts: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis in pairs:
        words = reference.split()
        aligned = _along(words, hypothesis.split())
        counts.update((a, b) for a, b in zip(words, aligned.words) if a != b)
        counts.update((NOTHING, word) for words in aligned.inserted for word in words)
    return counts


def side_by_side(utterance: Compared, title: str) -> list[str]:
    """Three lines: the reference and both hypotheses, each word under the one that it belongs to.

    Args:
        title: of the run.
    """
    words = utterance.reference.split()
    systems = [_along(words, text.split()) for text in (utterance.baseline, utterance.run)]
    columns: list[tuple[str, ...]] = []
    for i in range(len(words) + 1):
        extra = max(len(system.inserted[i]) for system in systems)
        padded = [system.inserted[i] + [NOTHING] * (extra - len(system.inserted[i])) for system in systems]
        columns += [(NOTHING, *row) for row in zip(*padded)]
        if i < len(words):
            columns.append((words[i], *(system.words[i] for system in systems)))
    widths = [max(map(len, column)) for column in columns]
    titles = ["reference", "baseline", title]
    width = max(map(len, titles))
    return [
        f"{name:{width}}  {' '.join(f'{column[row]:{size}}' for column, size in zip(columns, widths))}".rstrip()
        for row, name in enumerate(titles)
    ]


def appendix(utterances: Sequence[Compared], title: str, of: str = "words") -> list[str]:
    """Lines of Markdown.

    Args:
        utterances: of all sets.
        title: of the run.
        of: what the words of the texts are: "words", or "characters".
    """
    before, after = (
        confusions([(u.reference, getattr(u, which)) for u in utterances]) for which in ("baseline", "run")
    )
    pairs = sorted(
        before.keys() | after.keys(), key=lambda pair: (-abs(after[pair] - before[pair]), -after[pair], pair)
    )
    counted = []
    for u in utterances:
        words = u.reference.split()
        first, second = (_along(words, text.split()).errors for text in (u.baseline, u.run))
        if second:
            counted.append((first - second, -second, u.name, u))
    lines = [
        "## Appendix: what the run gets wrong beside its baseline",
        "",
        f"{of.capitalize()} of all sets that are taken for others; {_cell(NOTHING)} stands for none. Pairs whose",
        f"number has changed most come first: {min(PAIRS, len(pairs))} of {len(pairs)}.",
        "",
        f"| reference | recognised | baseline | {title} |",
        "| --- | --- | --- | --- |",
        *(f"| {_cell(a)} | {_cell(b)} | {before[a, b]} | {after[a, b]} |" for a, b in pairs[:PAIRS]),
        "",
        "Utterances that have become worst, those with the most errors first among equals: "
        f"{min(UTTERANCES, len(counted))} of {len(counted)} that the run has errors in.",
        "",
    ]
    for change, errors, name, utterance in sorted(counted)[:UTTERANCES]:
        lines += [f"{name}: errors of the baseline {change - errors}, of the run {-errors}", ""]
        lines += ["```text", *side_by_side(utterance, title), "```", ""]
    return lines


def _cell(word: str) -> str:
    return word.replace("|", "\\|").replace("*", "\\*")
