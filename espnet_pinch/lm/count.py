"""Count an n-gram model from transcripts, smoothed as Witten and Bell (1991) do, and write it as ARPA.

A word has been seen c(h, w) times after the words h, and T(h) different words have been. Then

    p(w | h) = (c(h, w) + T(h) p(w | h')) / (c(h) + T(h))

where h' is h without its first word. The shortest context is none; under it lies the same probability for every word,
for the end of a sentence and for "<unk>". The weight of backing off from h is T(h) / (c(h) + T(h)).
"""

import math
from collections import Counter
from collections.abc import Iterable

from espnet_pinch.errors import UserError
from espnet_pinch.lm.arpa import BEGIN, END, NEVER, UNKNOWN


def count_ngrams(texts: Iterable[str], order: int) -> str:
    """The ARPA file of a model of transcripts.

    Args:
        texts: words between spaces.
        order: largest number of words of an n-gram, at least 1.

    Raises:
        UserError: there is no word; or ``order`` is below 1.
    """
    if order < 1:
        raise UserError(f"the order of a language model is at least 1, not {order}")
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        sentence = [BEGIN, *words, END] if words else []
        for end in range(2, len(sentence) + 1):
            counts.update(tuple(sentence[start:end]) for start in range(max(0, end - order), end))
    if not counts:
        raise UserError("a language model cannot be made of texts without a word")
    seen: Counter[tuple[str, ...]] = Counter()  # c(h)
    kinds: Counter[tuple[str, ...]] = Counter()  # T(h)
    for gram, count in counts.items():
        seen[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    uniform = 1 / (kinds[()] + 1)
    probabilities: dict[tuple[str, ...], float] = {}
    for gram in sorted(counts, key=len):
        context = gram[:-1]
        lower = probabilities[gram[1:]] if context else uniform
        probabilities[gram] = (counts[gram] + kinds[context] * lower) / (seen[context] + kinds[context])
    probabilities[UNKNOWN,] = kinds[()] * uniform / (seen[()] + kinds[()])
    sections = []
    for n in range(1, order + 1):
        rows = {gram: math.log10(p) for gram, p in probabilities.items() if len(gram) == n}
        if n == 1:
            rows[BEGIN,] = NEVER
        if not rows:  # every sentence is shorter
            break
        lines = []
        for gram, value in sorted(rows.items()):
            weight = f"\t{math.log10(kinds[gram] / (seen[gram] + kinds[gram])):.6f}" if gram in kinds else ""
            lines.append(f"{value:.6f}\t{' '.join(gram)}{weight}\n")
        sections.append(lines)
    head = "".join(f"ngram {n}={len(lines)}\n" for n, lines in enumerate(sections, 1))
    body = "".join(f"\n\\{n}-grams:\n{''.join(lines)}" for n, lines in enumerate(sections, 1))
    return f"\\data\\\n{head}{body}\n\\end\\\n"
