"""Transcripts in the spelling of a vocabulary: its case, its form of accented letters, and characters that it lacks."""

import dataclasses
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from espnet_pinch.data.kaldi_dir import Utterance
from espnet_pinch.data.tokens import WORD, by_frequency
from espnet_pinch.errors import UserError

# What to do with a character that the vocabulary lacks.
POLICIES = ("error", "drop", "unknown", "extend")
SHOWN = 6  # number of characters that one message shows
MOST_MARKS = 4  # largest number of marks on one letter that are tried in every order


class Spelling:
    """Writes transcripts in the characters of a vocabulary, as far as possible.

    A text is never changed if all its characters are tokens. Otherwise, if the vocabulary has letters of only one case,
    the text takes that case. Every letter with its accents takes the canonically equivalent form (Unicode Standard
    Annex 15) that the vocabulary has: composed, decomposed, or a mixture. A letter that fits no token keeps its
    composed form.

    Args:
        tokens: a token list.
    """

    def __init__(self, tokens: Sequence[str]):
        letters = [token for token in tokens if len(token) == 1 and token != WORD]
        self.known = {*letters, " "}
        joined = "".join(letters)
        has_lower, has_upper = joined != joined.upper(), joined != joined.lower()
        self.change_case = str.lower if has_lower and not has_upper else str.upper
        self.one_case = has_lower != has_upper
        self.pieces: dict[str, str] = {}  # decomposed form: token
        for token in sorted(letters, key=lambda t: _decomposed(t) != t):  # K before the Kelvin sign
            self.pieces.setdefault(_decomposed(token), token)

    def __call__(self, text: str) -> str:
        """``text`` as the vocabulary spells it.

        >>> Spelling("abc").__call__("ABBA'")
        "abba'"
        """
        if self.known.issuperset(text):
            return text
        if self.one_case:
            text = self.change_case(text)
        for form in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
            if self.known.issuperset(form):
                return form
        return "".join(map(self._spell, _letters(unicodedata.normalize("NFC", text))))

    def unknown(self, texts: Iterable[str]) -> Counter[str]:
        """How often each character that is not a token occurs."""
        return Counter(char for text in texts for char in text if char not in self.known)

    def _spell(self, letter: str) -> str:
        """One composed letter with its accents, in the vocabulary's form; unchanged if there is none."""
        if self.known.issuperset(letter):
            return letter
        whole = _decomposed(letter)
        first, marks = whole[0], whole[1:]
        orders = itertools.permutations(marks) if len(marks) <= MOST_MARKS else [tuple(marks)]
        for order in orders:
            form = first + "".join(order)
            spelled = self._cut(form) if _decomposed(form) == whole else None
            if spelled is not None:
                return spelled
        return self._other_case(letter)

    def _cut(self, form: str) -> str | None:
        """The tokens that a decomposed ``form`` can be cut into, the longest first; None if it cannot."""
        if not form:
            return ""
        for end in range(len(form), 0, -1):
            rest = self._cut(form[end:]) if form[:end] in self.pieces else None
            if rest is not None:
                return self.pieces[form[:end]] + rest
        return None

    def _other_case(self, letter: str) -> str:
        """The other case of a letter, if a vocabulary with letters of both cases has only that; else unchanged."""
        for changed in (letter.upper(), letter.lower()):
            if self.known.issuperset(changed):
                return changed
        return letter


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _letters(text: str) -> Iterable[str]:
    """``text`` cut before every character that is not a combining mark."""
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or not unicodedata.combining(text[i]):
            yield text[start:i]
            start = i


@dataclasses.dataclass(frozen=True)
class UnknownCharacters:
    """What to do with characters that a vocabulary lacks.

    Attributes:
        policy: one of ``POLICIES``. "error" refuses a training set that has such characters. "drop" leaves them out of
            the training transcripts. "unknown" keeps them, and ESPnet reads each as "<unk>". "extend" gives the
            vocabulary a token for each that a training set has.
    """

    policy: str = "error"

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise UserError(f"unknown_characters must be one of {', '.join(POLICIES)}, not {self.policy!r}")

    def added(self, texts: Iterable[str], tokens: Sequence[str]) -> Counter[str]:
        """With "extend", the characters of the training texts that get a new token, with their counts."""
        spelling = Spelling(tokens)
        return spelling.unknown(map(spelling, texts)) if self.policy == "extend" else Counter()

    def check(self, utterances: Iterable[Utterance], spelling: Spelling, where: str) -> None:
        """With "error", raise UserError if spelled utterances have characters that are not tokens; it names them."""
        if self.policy != "error":
            return
        counts: Counter[str] = Counter()
        first = ""
        for u in utterances:
            if not spelling.known.issuperset(u.text):
                counts += spelling.unknown([u.text])
                first = first or u.id
        if counts:
            raise UserError(
                f"{where}: the vocabulary of the upstream lacks {describe(counts)}; first in utterance {first}. Set "
                "unknown_characters (in the YAML or as an option) to drop, unknown or extend: drop leaves them out of "
                "the training transcripts"
            )

    def apply(self, text: str, spelling: Spelling) -> str:
        """A training transcript in the vocabulary's spelling; with "drop", without its unknown characters."""
        if self.policy != "drop" or spelling.known.issuperset(text):
            return text
        return " ".join("".join(char for char in text if char in spelling.known).split())

    @property
    def treatment(self) -> str:
        """What happens to the unknown characters of a training or validation set, as words for a message."""
        return "left out" if self.policy == "drop" else "read as <unk>"


def describe(counts: Counter[str]) -> str:
    """Characters on one line, the most frequent first.

    >>> describe(Counter("aaab"))
    "'a' (U+0061) 3 times, 'b' (U+0062) once"
    """
    rows = [
        f"{char!r} (U+{ord(char):04X}) {'once' if counts[char] == 1 else f'{counts[char]:,} times'}"
        for char in by_frequency(counts)
    ]
    more = f" and {len(rows) - SHOWN} more characters" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more
