"""Transcripts in the spelling of a vocabulary: its case, its form of accented letters, and what to do with the rest."""

import dataclasses
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from espnet_pinch.data.kaldi_dir import Utterance
from espnet_pinch.data.tokens import by_frequency
from espnet_pinch.errors import UserError

# What becomes of a character that the vocabulary lacks.
POLICIES = ("error", "drop", "unknown", "extend")
SHOWN = 6  # characters that fit a line
MOST_MARKS = 4  # on one letter, tried in every order


class Spelling:
    """Writes transcripts in the characters of a vocabulary, where they can be written so.

    A text all of whose characters are tokens is never changed. Else it takes the vocabulary's case where that has
    letters of one case alone, and every letter with its accents takes the canonically equivalent form (Unicode Standard
    Annex 15) that the vocabulary has: composed, decomposed, or a mixture. What fits no token is left in composed form.

    Args:
        tokens: a token list.
    """

    def __init__(self, tokens: Sequence[str]):
        letters = [token for token in tokens if len(token) == 1]
        self.known = {*letters, " "}
        joined = "".join(letters)
        has_lower, has_upper = joined != joined.upper(), joined != joined.lower()
        self.change_case = str.lower if has_lower and not has_upper else str.upper
        self.one_case = has_lower != has_upper
        self.pieces: dict[str, str] = {}  # decomposed form: token
        for token in sorted(letters, key=lambda t: _decomposed(t) != t):  # K before the sign for Kelvin
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
        """How often each character that is no token occurs."""
        return Counter(char for text in texts for char in text if char not in self.known)

    def _spell(self, letter: str) -> str:
        """One letter with its accents, composed, in the vocabulary's form; as it is where there is none."""
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
        """``form`` cut into decomposed tokens, the longest first; None where that cannot be."""
        if not form:
            return ""
        for end in range(len(form), 0, -1):
            rest = self._cut(form[end:]) if form[:end] in self.pieces else None
            if rest is not None:
                return self.pieces[form[:end]] + rest
        return None

    def _other_case(self, letter: str) -> str:
        """Of a vocabulary with letters of both cases: the other case of one that it has in that case alone."""
        for changed in (letter.upper(), letter.lower()):
            if self.known.issuperset(changed):
                return changed
        return letter


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _letters(text: str) -> Iterable[str]:
    """``text`` cut before every character that is no combining mark."""
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or not unicodedata.combining(text[i]):
            yield text[start:i]
            start = i


@dataclasses.dataclass(frozen=True)
class UnknownCharacters:
    """What becomes of characters that a vocabulary lacks.

    Attributes:
        policy: of ``POLICIES``. "error" refuses a training set that has some. "drop" leaves them out of the training
            transcripts. "unknown" keeps them, and ESPnet reads each as "<unk>". "extend" gives the vocabulary a token
            for each that a training set has.
    """

    policy: str = "error"

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise UserError(f"unknown_characters must be one of {', '.join(POLICIES)}, not {self.policy!r}")

    def added(self, texts: Iterable[str], tokens: Sequence[str]) -> Counter[str]:
        """Under "extend", the characters of the training texts that have no token and get one, with their numbers."""
        spelling = Spelling(tokens)
        return spelling.unknown(map(spelling, texts)) if self.policy == "extend" else Counter()

    def check(self, utterances: Sequence[Utterance], spelling: Spelling, where: str) -> None:
        """Raises ValueError under "error" where spelled utterances have characters that are no token; it names them."""
        counts = spelling.unknown(u.text for u in utterances) if self.policy == "error" else Counter()
        if counts:
            first = next(u.id for u in utterances if not spelling.known.issuperset(u.text))
            raise UserError(
                f"{where}: the vocabulary of the upstream lacks {describe(counts)}; first in utterance {first}. Set "
                "unknown_characters (in the YAML or as an option) to drop, unknown or extend: drop leaves them out of "
                "the training transcripts"
            )

    def apply(self, text: str, spelling: Spelling) -> str:
        """A training transcript in the vocabulary's spelling; under "drop" without its unknown characters."""
        if self.policy != "drop" or spelling.known.issuperset(text):
            return text
        return " ".join("".join(char for char in text if char in spelling.known).split())

    @property
    def treatment(self) -> str:
        """What is done with those of a training or validation set, for a line."""
        return "left out" if self.policy == "drop" else "read as <unk>"


def describe(counts: Counter[str]) -> str:
    """Characters by falling frequency, for one line.

    >>> describe(Counter("aaab"))
    "'a' (U+0061) 3 times, 'b' (U+0062) once"
    """
    rows = [
        f"{char!r} (U+{ord(char):04X}) {'once' if counts[char] == 1 else f'{counts[char]:,} times'}"
        for char in by_frequency(counts)
    ]
    more = f" and {len(rows) - SHOWN} more characters" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more
