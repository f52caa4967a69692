"""Steps that bring transcripts to one form: each is a function here, decorated with ``step``. There is no other list.

The same steps go over the training transcripts, the references and, before they are scored, the hypotheses.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

from espnet_pinch.errors import UserError

_found: dict[str, "Step"] = {}


@dataclasses.dataclass(frozen=True)
class Step:
    """A registered step.

    Attributes:
        name: its name in ``--text``.
        apply: from a text to another one; white space at will, as spaces are made single afterwards.
        about: what it does, one line.
    """

    name: str
    apply: Callable[[str], str]
    about: str


def step(function: Callable[[str], str]) -> Callable[[str], str]:
    """Decorate a function to register it under its name. The first line of its docstring is its documentation."""
    _found[function.__name__] = Step(function.__name__, function, (function.__doc__ or "").partition("\n")[0])
    return function


def all_steps() -> dict[str, Step]:
    """``{name: step}``, in the order in which they are written here."""
    return dict(_found)


class TextSteps:
    """Steps, one after the other. Afterwards spaces are single and letters composed (NFC).

    Args:
        given: names with spaces or commas between them, or a list of names.

    Attributes:
        names: the names of the steps.

    Raises:
        UserError: there is no step of that name, or ``given`` is of another type.
    """

    def __init__(self, given: str | Sequence[str] | None = ""):
        names = given.replace(",", " ").split() if isinstance(given, str) else given or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f'text must be names of steps such as "nfc lower", not {given!r}')
        for name in names:
            if name not in _found:
                raise UserError(f"text: there is no step {name!r}; there is: {', '.join(_found)}")
        self.names = tuple(names)
        self._steps = [_found[name] for name in names]

    def __call__(self, text: str) -> str:
        return self.trace(text)[0]

    def trace(self, text: str) -> tuple[str, list[str]]:
        """The text after all steps, and the names of those that have changed it."""
        changed = []
        for one in self._steps:
            after = _single_spaces(one.apply(text))
            if after != text:
                changed.append(one.name)
            text = after
        return (unicodedata.normalize("NFC", text) if self._steps else text), changed


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


@step
def nfc(text: str) -> str:
    """Letters with accents in Unicode's composed form (stage 1 does this to every corpus)."""
    return unicodedata.normalize("NFC", text)


@step
def nfkc(text: str) -> str:
    """Composed, and wide, narrow and joined forms as the letters that they stand for: Ａ as A, ﬁ as fi."""
    return unicodedata.normalize("NFKC", text)


@step
def lower(text: str) -> str:
    """Small letters. (Turkish and Azerbaijani, whose I is another letter, need a step of their own.)"""
    return text.lower()


@step
def upper(text: str) -> str:
    """Capital letters."""
    return text.upper()


@step
def plain_quotes(text: str) -> str:
    """Typographic apostrophes and quotation marks as ' and "."""
    return re.sub("[“”„‟«»〝〞]", '"', re.sub("[‘’‚‛ʼ`´]", "'", text))


@step
def no_brackets(text: str) -> str:
    """Without what stands in brackets: [noise], (laughs), <unk>, {um}, 【...】, （...）."""
    before = None
    while text != before:  # the innermost first
        before, text = text, re.sub(r"\[[^][]*\]|\([^()]*\)|<[^<>]*>|\{[^{}]*\}|【[^【】]*】|（[^（）]*）", " ", text)
    return text


# Within a word these are letters: don't, l'eau, col·lecció, and the Hebrew signs of abbreviations.
_INNER = "'’·״׳"


@step
def no_punctuation(text: str) -> str:
    """Without punctuation of any script; apostrophes between letters stay, a hyphen becomes a space."""
    kept = []
    for i, char in enumerate(text):
        inside = char in _INNER and 0 < i < len(text) - 1 and _is_letter(text[i - 1]) and _is_letter(text[i + 1])
        kept.append(" " if unicodedata.category(char).startswith("P") and not inside else char)
    return "".join(kept)


@step
def no_symbols(text: str) -> str:
    """Without signs that are neither letters nor punctuation: ♪, =, $, emoji."""
    text = re.sub("[\ufe0e\ufe0f\u20e3]", "", text)  # they change how the sign before them looks
    signs = [unicodedata.category(char).startswith("S") for char in text]
    joiners = [char == "\u200d" and before for char, before in zip(text, [False, *signs])]  # of several emoji in one
    return "".join(" " if sign or joiner else char for char, sign, joiner in zip(text, signs, joiners))


@step
def no_format(text: str) -> str:
    """Without invisible marks: zero-width spaces, marks of direction, soft hyphens; joiners of letters stay."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf" or c in "\u200c\u200d")


@step
def no_tatweel(text: str) -> str:
    """Without the stroke that stretches Arabic words."""
    return text.replace("\u0640", "")


@step
def no_spaces(text: str) -> str:
    """Without the spaces between characters of scripts that write none, such as Chinese, Japanese and Thai."""
    words = text.split()
    joined = words[:1]
    for before, word in zip(words, words[1:]):
        joined.append(word if without_spaces(before[-1]) and without_spaces(word[0]) else f" {word}")
    return "".join(joined)


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LM"


_UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def without_spaces(char: str) -> bool:
    """Whether a letter is of a script that writes no spaces between words."""
    return char > "\u0dff" and unicodedata.name(char, "").startswith(_UNSPACED) or char in "々〇ー"
