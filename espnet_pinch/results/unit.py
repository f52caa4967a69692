"""What errors are counted in first: words; characters, as is usual for languages that write no spaces; or labels."""

import dataclasses
from collections.abc import Iterable

from espnet_pinch.asr.head import ASR, CLASSIFY
from espnet_pinch.data.text_steps import without_spaces
from espnet_pinch.errors import UserError

WER, CER, ERROR = "wer", "cer", "error"
AUTO = "auto"
_SPACE = "␣"  # a space that is a character among others
_NAMES = {WER: "words", CER: "characters", ERROR: "utterances"}
_TITLES = {WER: "WER", CER: "CER", ERROR: "error"}


@dataclasses.dataclass(frozen=True)
class Unit:
    """What errors are counted in first.

    Attributes:
        rate: ``WER``, ``CER``, or ``ERROR`` of a classifier, whose labels are one word each.
        why: for the report.
    """

    rate: str = WER
    why: str = ""

    @property
    def title(self) -> str:
        return _TITLES[self.rate]

    @property
    def test(self) -> str:
        """The significance test of two systems."""
        return "McNemar's exact test" if self.rate == ERROR else "MAPSSWE"

    @property
    def of(self) -> str:
        """What is counted: "words", "characters" or "utterances"."""
        return _NAMES[self.rate]

    def split(self, text: str) -> str:
        """A text whose words, with spaces between them, are what is counted."""
        if self.rate == ERROR:
            return text.replace(" ", _SPACE)
        return text if self.rate == WER else " ".join(_SPACE if char == " " else char for char in text)


def choose_unit(given: str, references: Iterable[str], task: str = ASR) -> Unit:
    """The unit that the user has given, or that fits the references.

    Args:
        task: of the models; the errors of classifiers are utterances.
        given: ``WER``, ``CER`` or ``AUTO``: characters, where more than half of the letters are of scripts that write
            no spaces between words.

    Raises:
        UserError: ``given`` is none of these.
    """
    if task != ASR:
        return unit_of(task)
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


def unit_of(task: str) -> Unit:
    """What the errors of models of a task are counted in, where the script of the references does not matter."""
    return Unit(ERROR) if task == CLASSIFY else Unit()
