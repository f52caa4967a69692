"""Labels of utterances: the whole transcript of each is its label."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from espnet_pinch.data.kaldi_dir import Utterance
from espnet_pinch.errors import UserError

MOST = 10_000  # labels; more are transcripts, not labels
SHOWN = 6  # labels that one message shows


class Labels:
    """The labels that a classifier knows.

    Args:
        names: in the order of its outputs.
        where: they are from, for messages.

    Raises:
        UserError: they are fewer than two, or more than ``MOST``.
    """

    def __init__(self, names: Sequence[str], where: str):
        self.names, self._known, self._where = list(names), frozenset(names), where
        if not 2 <= len(self.names) <= MOST:
            raise UserError(
                f"{where} has {len(self.names):,} labels, and a classifier needs 2 to {MOST:,}; the label of an "
                "utterance is its whole transcript"
            )

    @classmethod
    def of(cls, utterances: Iterable[Utterance], where: str) -> "Labels":
        """The labels of a training set, sorted; an utterance without a transcript has none.

        Raises:
            UserError: as ``Labels``.
        """
        found: set[str] = set()
        for u in utterances:
            if u.text:
                found.add(u.text)
        return cls(sorted(found), where)

    def check(self, utterances: Iterable[Utterance], where: str) -> Iterator[Utterance]:
        """The utterances of a set.

        Raises:
            UserError: labels of the set are not known; it names them, after the last utterance.
        """
        counts: Counter[str] = Counter()
        first = ""
        for u in utterances:
            if u.text not in self._known:
                counts[u.text] += 1
                first = first or u.id
            yield u
        if counts:
            shown = ", ".join(
                f"{label!r} ({count:,})" if label else f"no label at all ({count:,})"
                for label, count in counts.most_common(SHOWN)
            )
            more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
            raise UserError(
                f"{where}: labels that {self._where} lacks: {shown}{more}; first in utterance {first}. A classifier "
                "knows the labels of its training alone: correct them, or leave these utterances out"
            )
