"""Back-off n-gram models in ARPA files, plain or packed by gzip."""

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from typing import TextIO

from espnet_pinch.errors import UserError, one_line

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
# Taken from the least probable word, as log10, where a model has no <unk>: an unknown word is less probable than that.
UNSEEN = 1.0
NEVER = -99.0  # log10 of the probability of what is never predicted: a sentence's begin
_GZIP, _KENLM = b"\x1f\x8b", b"mmap lm http://kheafield.com/code"
_LONGEST = 100_000  # characters of a line: a packed file of a megabyte may hold one that fills the memory
_SHOWN = 60  # characters of a line that a message shows

Context = tuple[str, ...]


class NGramModel:
    """Probabilities of words after other words.

    Args:
        order: number of words of the longest n-grams.
        probabilities: ``{n-gram, a space between its words: log10 of the probability}``.
        backoffs: ``{n-gram: log10 of the weight}`` of those that have one.
    """

    def __init__(self, order: int, probabilities: dict[str, float], backoffs: dict[str, float]):
        self.order = order
        self._probabilities, self._backoffs = probabilities, backoffs
        self._unknown = next((name for name in (UNKNOWN, UNKNOWN.upper()) if name in probabilities), None)
        self._floor = min((p for p in probabilities.values() if p > NEVER), default=0.0) - UNSEEN

    @property
    def start(self) -> Context:
        """The context of a sentence's first word."""
        return (BEGIN,)[: self.order - 1]

    def words(self) -> Iterator[str]:
        """All words, without the marks of a sentence's begin and end and of unknown words."""
        marks = {BEGIN, END, UNKNOWN, UNKNOWN.upper()}
        return (gram for gram in self._probabilities if " " not in gram and gram not in marks)

    def score(self, context: Context, word: str) -> float:
        """Natural logarithm of the probability of ``word``, of ``END`` for the end, after ``context``.

        A word that the model lacks has the probability of "<unk>"; without one, a tenth of the least probable word's.
        """
        if word not in self._probabilities and self._unknown:
            word = self._unknown
        weight = 0.0
        for i in range(len(context) + 1):
            found = self._probabilities.get(" ".join((*context[i:], word)))
            if found is not None:
                return (weight + found) * math.log(10)
            weight += self._backoffs.get(" ".join(context[i:]), 0.0)
        return (weight + self._floor) * math.log(10)

    def beginnings(self) -> dict[str, float]:
        """``{beginning of a word: natural logarithm of the likeliest such word's probability without a context}``."""
        best: dict[str, float] = {}
        for word in self.words():
            score = self._probabilities[word] * math.log(10)
            for end in range(1, len(word) + 1):
                if score > best.get(word[:end], -math.inf):
                    best[word[:end]] = score
        return best

    def after(self, context: Context, word: str) -> Context:
        """The context of the word after ``word``."""
        if word not in self._probabilities and self._unknown:
            word = self._unknown
        return (*context, word)[-(self.order - 1) :] if self.order > 1 else ()


def read_arpa(path: str | os.PathLike) -> NGramModel:
    """Read an ARPA file.

    Raises:
        OSError: it cannot be read.
        UserError: it is empty, of another kind, cut short or damaged; the message names the line.
    """
    with open(path, "rb") as file:
        head = file.read(len(_KENLM))
    if not head:
        raise UserError(f"{path} is empty: a language model is an ARPA file")
    if head == _KENLM:
        raise UserError(f"{path} is a binary file of KenLM: give the ARPA file that it was made from")
    reader = gzip.open if head.startswith(_GZIP) else open
    try:
        with reader(path, "rt", encoding="utf-8") as file:
            return _Reader(file, str(path)).read()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no ARPA file: it is not UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is cut short or damaged: {one_line(error)}") from None


class _Reader:
    """Reads the lines of an ARPA file, and knows where it is."""

    def __init__(self, file: TextIO, path: str):
        self.file, self.path, self.number, self.line = file, path, 0, ""

    def read(self) -> NGramModel:
        if not any(line == "\\data\\" for line in self._lines()):
            raise UserError(f"{self.path} is no ARPA file: it has no line \\data\\")
        counts: dict[int, int] = {}
        for line in self._lines():
            stated = re.fullmatch(r"ngram\s+(\d{1,3})\s*=\s*(\d{1,18})", line)
            if not stated:
                break
            counts[int(stated[1])] = int(stated[2])
        if list(counts) != list(range(1, len(counts) + 1)) or not counts or not counts[1]:
            raise self._fault("the numbers of n-grams are expected here, from 'ngram 1=' on")
        probabilities: dict[str, float] = {}
        backoffs: dict[str, float] = {}
        for order, count in counts.items():
            if self.line != f"\\{order}-grams:":
                raise self._fault(f"\\{order}-grams: is expected here")
            found = self._section(order, probabilities, backoffs)
            if found != count:
                raise self._fault(f"{count:,} {order}-grams are stated, and there are {found:,}")
        if self.line != "\\end\\":
            raise self._fault("\\end\\ is expected here")
        return NGramModel(len(counts), probabilities, backoffs)

    def _section(self, order: int, probabilities: dict[str, float], backoffs: dict[str, float]) -> int:
        """Read n-grams up to the next line that begins with a backslash; how many there are."""
        count = 0
        for line in self._lines():
            if line.startswith("\\") and re.fullmatch(r"\\(\d+-grams:|end\\)", line):
                return count
            fields = re.split(r"[ \t]+", line)
            try:
                numbers = [float(field) for field in (fields[0], *fields[order + 1 :])]
            except ValueError:
                numbers = []
            sound = len(fields) in (order + 1, order + 2) and numbers and all(map(math.isfinite, numbers))
            if not sound or numbers[0] > 0:
                raise self._fault(f"log10 of a probability, {order} words and perhaps a back-off weight are expected")
            gram = " ".join(fields[1 : order + 1])
            if gram in probabilities:
                raise self._fault("this n-gram was there before")
            probabilities[gram] = numbers[0]
            if len(numbers) > 1 and numbers[1]:
                backoffs[gram] = numbers[1]
            count += 1
        raise UserError(f"{self.path} is cut short: it ends in its {order}-grams, without a line \\end\\")

    def _lines(self) -> Iterator[str]:
        """The next lines that are not empty; the last one stays in ``self.line``."""
        while line := self.file.readline(_LONGEST + 1):
            self.number += 1
            self.line = line.strip(" \t\r\n")
            if len(line) > _LONGEST:
                raise self._fault(f"an ARPA file has no line of over {_LONGEST:,} characters")
            if self.line:
                yield self.line
        self.line = ""

    def _fault(self, what: str) -> UserError:
        line = self.line[:_SHOWN] + ("..." if len(self.line) > _SHOWN else "")
        return UserError(f"{self.path}, line {self.number}, {line!r}: {what}")
