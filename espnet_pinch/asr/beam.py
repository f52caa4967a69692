"""CTC prefix beam search over a batch, with an n-gram model of words.

A *prefix* is a beginning of a transcript. Its probability is the sum over the paths that lead to it, kept apart for
those that end in the blank and those that end in its last token (Graves and Jaitly 2014, Hannun and others 2014). Every
frame extends all prefixes of all utterances by all tokens at once, and keeps the best ``beam_size`` of each utterance.
The language model scores a word as soon as it is complete. Until then, a prefix is ranked as if the word would become
the likeliest one that begins so. Otherwise prefixes that never complete a word would push all others out.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from espnet_pinch.asr.forced import align_tokens
from espnet_pinch.asr.spans import Span
from espnet_pinch.data.tokens import surface
from espnet_pinch.errors import UserError
from espnet_pinch.lm.arpa import END, Context, NGramModel

BEAM_SIZE, LM_WEIGHT, WORD_SCORE, HOTWORD_SCORE = 16, 0.5, 0.0, 5.0  # defaults
MOST_PREFIXES = 5000  # every frame compares each prefix with each
_NONE = -1  # no prefix, no token


class Hypothesis(NamedTuple):
    """What a search has found.

    Attributes:
        ids: token indices.
        acoustic: natural logarithm of the probability of ``ids``, as far as the beam held its paths.
        score: ``acoustic`` plus the weighted scores of words. The search looks for the highest.
    """

    ids: list[int]
    acoustic: float
    score: float


class BeamSearch:
    """Finds the transcript with the highest score: log p(its tokens | audio), plus for each of its words ``lm_weight``
    log p(word | words before) + ``word_score``, and ``hotword_score`` if it is a hot word. The end of an utterance
    counts as the language model says.

    Args:
        tokens: the token list.
        blank: index of the blank.
        beam_size: prefixes that are kept of each utterance, 1 to ``MOST_PREFIXES``.
        lm: None for none.
        lm_weight: of the language model's natural logarithms, at least 0.
        word_score: for each word; a positive one makes for more words.
        hotwords: words that are expected, as the token list spells them.
        hotword_score: for each hot word, at least 0.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        blank: int,
        beam_size: int = BEAM_SIZE,
        lm: NGramModel | None = None,
        lm_weight: float = LM_WEIGHT,
        word_score: float = WORD_SCORE,
        hotwords: Collection[str] = (),
        hotword_score: float = HOTWORD_SCORE,
    ):
        if not 1 <= beam_size <= MOST_PREFIXES:
            raise UserError(f"beam_size must be from 1 to {MOST_PREFIXES}, not {beam_size}")
        if not 0 <= lm_weight < np.inf or not abs(word_score) < np.inf:
            raise UserError(f"lm_weight must be at least 0, and word_score finite, not {lm_weight} and {word_score}")
        if not 0 <= hotword_score < np.inf:
            raise UserError(f"hotword_score must be at least 0, not {hotword_score}")
        self.hotwords, self.hotword_score = frozenset(hotwords), hotword_score
        self._hot_beginnings = {word[:end] for word in hotwords for end in range(1, len(word) + 1)}
        self.blank, self.beam_size = blank, beam_size
        self.lm, self.lm_weight, self.word_score = lm, lm_weight, word_score
        self._beginnings = lm.beginnings() if lm else {}
        self.surfaces = [surface(name) for name in tokens]
        self.breaks = np.array([text[:1].isspace() for text in self.surfaces])  # tokens that complete the word before

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Span]]:
        """As ``Search``. Times and probabilities are those of the transcript's most probable path."""
        log_probs = log_probs.cpu()
        rows = zip(self.find(log_probs, lengths), log_probs, lengths.tolist())
        return [align_tokens(found.ids, frames[:length], self.blank) for found, frames, length in rows]

    def find(self, log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """
        Args:
            log_probs: (batch, frames, tokens), natural logarithms.
            lengths: (batch,) number of frames of each utterance.

        Returns: the best hypothesis of each utterance.
        """
        order = np.argsort(-lengths.cpu().numpy(), kind="stable")  # so that those that go on are the first ones
        frames = log_probs.cpu().double().numpy()[order]
        counts = lengths.cpu().numpy()[order]
        beam = _Beam(self, len(order))
        for t in range(counts.max(initial=0)):
            beam.step(frames[: int((counts > t).sum()), t])
        best = beam.best()
        return [best[place] for place in np.argsort(order)]

    def word(self, context: Context, text: str) -> tuple[float, Context]:
        """The score of a word, and the context after it; of no word where ``text`` is empty."""
        if not text:
            return 0.0, context
        score = self.word_score + self.hotword_score * (text in self.hotwords)
        if self.lm is None:
            return score, context
        return score + self.lm_weight * self.lm.score(context, text), self.lm.after(context, text)

    def hope(self, text: str) -> float:
        """The estimated score of a word that begins with ``text``."""
        if not text:
            return 0.0
        score = self.word_score + self.hotword_score * (text in self._hot_beginnings)
        if self.lm is None:
            return score
        found = self._beginnings.get(text)
        return score + self.lm_weight * (self.lm.score((), text) if found is None else found)

    def end(self, context: Context) -> float:
        """The score of an utterance's end."""
        return 0.0 if self.lm is None else self.lm_weight * self.lm.score(context, END)


class _Prefix(NamedTuple):
    """A node of the tree of prefixes.

    Attributes:
        token, parent: the last token, and the number of the prefix before it.
        tail: text of the word that is not complete.
        context: of that word, for the language model.
        words: score of the complete words.
        completion: what completing the word adds.
        hope: what it is estimated to add.
    """

    token: int
    parent: int
    tail: str
    context: Context
    words: float
    completion: float
    hope: float


class _Beam:
    """The prefixes of a batch, at a frame. All arrays are (utterances, beam_size)."""

    def __init__(self, search: BeamSearch, utterances: int):
        self.search = search
        start = search.lm.start if search.lm else ()
        self.tree = [_Prefix(_NONE, _NONE, "", start, 0.0, 0.0, 0.0)]
        self.numbers: dict[tuple[int, int], int] = {}  # {(parent, token): prefix}
        shape = utterances, search.beam_size
        self.prefix = np.full(shape, _NONE)
        self.prefix[:, 0] = 0
        self.parent, self.token = np.full(shape, _NONE), np.full(shape, _NONE)
        self.words, self.completion, self.hope = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.after_blank, self.after_token = np.full(shape, -np.inf), np.full(shape, -np.inf)  # log-probabilities
        self.after_blank[:, 0] = 0.0

    def step(self, frame: np.ndarray) -> None:
        """Go on by a frame.

        Args:
            frame: log-probabilities (n, tokens) of the first ``n`` utterances; the others have ended.
        """
        n, size = len(frame), self.search.beam_size
        prefix, parent, token = self.prefix[:n], self.parent[:n], self.token[:n]
        after_blank, after_token = self.after_blank[:n], self.after_token[:n]
        total = np.logaddexp(after_blank, after_token)
        rows, places = np.nonzero(token != _NONE)
        last = token[rows, places]

        longer = total[:, :, None] + frame[:, None, :]  # (n, size, tokens): prefixes with one more token
        longer[rows, places, last] = after_blank[rows, places] + frame[rows, last]  # a repeat needs a blank between
        longer[:, :, self.search.blank] = -np.inf
        stay_blank = total + frame[:, self.search.blank, None]
        stay_token = np.full_like(total, -np.inf)
        stay_token[rows, places] = after_token[rows, places] + frame[rows, last]
        # Where a longer prefix is in the beam, too, the two are one.
        same = (parent[:, None, :] == prefix[:, :, None]) & (parent[:, None, :] != _NONE)  # (n, shorter, longer)
        row, short, long = np.nonzero(same)
        added = row, short, token[row, long]
        stay_token[row, long] = np.logaddexp(stay_token[row, long], longer[added])
        longer[added] = -np.inf

        # A longer prefix is ranked by its parent's hope until the next frame: that spares the scores of those not kept.
        hoped, complete = self.words[:n] + self.hope[:n], self.words[:n] + self.completion[:n]
        rank_stay = np.logaddexp(stay_blank, stay_token) + hoped
        rank_longer = longer + np.where(self.search.breaks, complete[:, :, None], hoped[:, :, None])
        ranks = np.concatenate([rank_stay, rank_longer.reshape(n, -1)], 1)
        chosen = np.argpartition(-ranks, size - 1, 1)[:, :size]
        alive = np.take_along_axis(ranks, chosen, 1) > -np.inf
        grown = alive & (chosen >= size)
        source = np.where(chosen < size, chosen, (chosen - size) // frame.shape[1])

        def taken(values: np.ndarray, nothing: float) -> np.ndarray:
            return np.where(alive, np.take_along_axis(values, source, 1), nothing)

        for name in ("prefix", "parent", "token"):
            getattr(self, name)[:n] = taken(getattr(self, name)[:n], _NONE)
        for name in ("words", "completion", "hope"):
            getattr(self, name)[:n] = taken(getattr(self, name)[:n], 0.0)
        self.after_blank[:n] = np.where(grown, -np.inf, taken(stay_blank, -np.inf))
        flat = np.take_along_axis(longer.reshape(n, -1), np.maximum(chosen - size, 0), 1)
        self.after_token[:n] = np.where(grown, flat, taken(stay_token, -np.inf))
        for i, k in zip(*np.nonzero(grown)):
            number = self._child(int(self.prefix[i, k]), int(chosen[i, k] - size) % frame.shape[1])
            node = self.tree[number]
            self.prefix[i, k], self.parent[i, k], self.token[i, k] = number, node.parent, node.token
            self.words[i, k], self.completion[i, k], self.hope[i, k] = node.words, node.completion, node.hope

    def _child(self, parent: int, token: int) -> int:
        """The number of the prefix that is ``parent`` and ``token``."""
        number = self.numbers.get((parent, token))
        if number is None:
            node, text = self.tree[parent], self.search.surfaces[token]
            tail, context, words = node.tail + text, node.context, node.words
            if self.search.breaks[token]:
                tail, words = text.strip(), words + node.completion
                _, context = self.search.word(context, node.tail)
            completion, _ = self.search.word(context, tail)
            number = self.numbers[parent, token] = len(self.tree)
            self.tree.append(_Prefix(token, parent, tail, context, words, completion, self.search.hope(tail)))
        return number

    def best(self) -> list[Hypothesis]:
        acoustic = np.logaddexp(self.after_blank, self.after_token)
        found = []
        for prefixes, row in zip(self.prefix.tolist(), acoustic.tolist()):
            scores = [
                value + self._words(number) if number != _NONE else -np.inf for number, value in zip(prefixes, row)
            ]
            place = int(np.argmax(scores))
            found.append(Hypothesis(self._ids(prefixes[place]), row[place], scores[place]))
        return found

    def _words(self, number: int) -> float:
        """The score of all words of a prefix at the end of its utterance."""
        node = self.tree[number]
        _, context = self.search.word(node.context, node.tail)
        return node.words + node.completion + self.search.end(context)

    def _ids(self, number: int) -> list[int]:
        ids = []
        while number > 0:
            ids.append(self.tree[number].token)
            number = self.tree[number].parent
        return ids[::-1]
