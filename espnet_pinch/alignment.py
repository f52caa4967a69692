"""Align the words of a hypothesis to its reference, as NIST's sclite does, and count the word errors."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

SUBSTITUTION, GAP = 4, 3  # sclite's costs; a gap is an insertion or a deletion


@dataclasses.dataclass(frozen=True)
class WordErrors:
    """Word errors of a set of utterances.

    Attributes:
        words: number of words in the references.
        substitutions, deletions, insertions: their numbers in sclite's alignment.
    """

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def count_word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """Word errors of pairs (reference, hypothesis). The whole package counts word errors with this function.

    >>> count_word_errors([("ONE TWO", "ONE TOO"), ("SIX", "SIX")])
    WordErrors(words=3, substitutions=1, deletions=0, insertions=0)
    """
    edits = Counter("".join(align(reference.split(), hypothesis.split()) for reference, hypothesis in pairs))
    return WordErrors(edits["C"] + edits["S"] + edits["D"], edits["S"], edits["D"], edits["I"])


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """The cheapest alignment, one letter per edit: correct, substituted, deleted, inserted ("C", "S", "D", "I").

    A substitution costs 4, an insertion or a deletion 3. Equally cheap alignments are decided as sclite does: traced
    from the end, a pair of words is preferred to an insertion, and an insertion to a deletion. Words must be equal in
    case too (``sclite -s``). sclite's notation for alternatives and optional words has no meaning here.

    Returns: (number of reference words + number of "I") letters, from the first word to the last.

    >>> align("ONE TWO THREE FOUR".split(), "ONE TOO THREE OH FOUR".split())
    'CSCIC'
    """
    if reference == hypothesis:
        return "C" * len(reference)
    ids = {word: i for i, word in enumerate({*reference, *hypothesis})}
    columns = np.array([ids[word] for word in hypothesis], dtype=int)
    gaps = GAP * np.arange(len(columns) + 1)
    rows: list[np.ndarray] = [gaps]  # row i: costs of aligning i reference words with 0, 1, ... hypothesis words
    for word in reference:
        row = rows[-1] + GAP
        row[1:] = np.minimum(row[1:], rows[-1][:-1] + SUBSTITUTION * (columns != ids[word]))
        rows.append(np.minimum.accumulate(row - gaps) + gaps)  # insertions: running minimum without their own cost
    costs = [row.tolist() for row in rows]

    edits, i, j = [], len(reference), len(hypothesis)
    while i or j:
        same = i and j and reference[i - 1] == hypothesis[j - 1]
        if i and j and costs[i][j] == costs[i - 1][j - 1] + (0 if same else SUBSTITUTION):
            edits.append("C" if same else "S")
            i, j = i - 1, j - 1
        elif j and costs[i][j] == costs[i][j - 1] + GAP:
            edits.append("I")
            j -= 1
        else:
            edits.append("D")
            i -= 1
    return "".join(reversed(edits))
