"""Whether errors are counted in words first, or in characters, as is usual for languages that write no spaces."""

import dataclasses
from collections.abc import Iterable

from espnet_pinch.data.text_steps import without_spaces
from espnet_pinch.errors import UserError

WER, CER = "wer", "cer"
AUTO = "auto"
_SPACE = "␣"  # a space that is a character among others
_NAMES = {WER: "words", CER: "characters"}


@dataclasses.dataclass(frozen=True)
class Unit:
    """What errors are counted in first.

    Attributes:
        rate: ``WER`` or ``CER``.
        why: for the report.
    """

    rate: str = WER
    why: str = ""

    @property
    def title(self) -> str:
        return self.rate.upper()

    @property
    def of(self) -> str:
        """What is counted: "words" or "characters"."""
        return _NAMES[self.rate]

    def split(self, text: str) -> str:
        """A text whose words, with spaces between them, are what is counted."""
        return text if self.rate == WER else " ".join(_SPACE if char == " " else char for char in text)


def choose_unit(given: str, references: Iterable[str]) -> Unit:
    """The unit that the user has given, or that fits the references.

    Args:
        given: ``WER``, ``CER`` or ``AUTO``: characters, where more than half of the letters are of scripts that write
            no spaces between words.

    Raises:
        UserError: ``given`` is none of these.
    """
    if given in (WER, CER):
        return Unit(given, "as asked for")
    if given != AUTO:
        raise UserError(f"--error_rate must be {AUTO}, {WER} or {CER}, not {given!r}")
    letters = unspaced = 0
    for text in references:
        for char in text:
            if char.isalpha():
                letters += 1
                unspaced += without_spaces(char)
    if not letters or unspaced <= letters / 2:
        return Unit()
    share = f"{100 * unspaced / letters:.0f} %"
    return Unit(CER, f"{share} of the letters are of a script that writes no spaces between words")
