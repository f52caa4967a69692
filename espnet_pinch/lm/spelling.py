"""Whether a language model spells its words as the recogniser does; hot words in the recogniser's spelling."""

import os
from collections.abc import Sequence
from pathlib import Path

from espnet_pinch.data.spelling import Spelling, describe
from espnet_pinch.data.tokens import token_of
from espnet_pinch.errors import UserError
from espnet_pinch.lm.arpa import NGramModel

ENOUGH = 0.5  # least share of the words that the recogniser must be able to spell


def check_spelling(lm: NGramModel, tokens: Sequence[str], name: str) -> str:
    """A note about words that the recogniser can never find, as it lacks a character of theirs; "" if there are none.

    Args:
        tokens: the recogniser's token list.
        name: of the language model, for messages.

    Raises:
        UserError: there is no word; or most words cannot be found, and what is wrong, such as their case.
    """
    spelling = Spelling([token_of(token) for token in tokens])
    words = list(lm.words())
    if not words:
        raise UserError(f"{name} has no word")
    lacking = [word for word in words if not spelling.known.issuperset(word)]
    found = len(words) - len(lacking)
    if found < ENOUGH * len(words):
        changed = sum(spelling.known.issuperset(spelling(word)) for word in words)
        if changed >= ENOUGH * len(words):
            example = next(word for word in lacking if spelling.known.issuperset(spelling(word)))
            raise UserError(
                f"{name}: its words are spelled in another way than the model's transcripts, such as {example!r} for "
                f"{spelling(example)!r}: change the case of the language model's words, or count it again"
            )
        raise UserError(
            f"{name}: {len(lacking):,} of its {len(words):,} words, such as {lacking[0]!r}, have characters that the "
            "model's vocabulary lacks: it belongs to another language or spelling"
        )
    if not lacking:
        return ""
    return (
        f"{name}: {len(lacking):,} of its {len(words):,} words, such as {lacking[0]!r}, have characters that the model "
        "lacks, and are never found"
    )


def read_hotwords(path: str | os.PathLike, tokens: Sequence[str]) -> list[str]:
    """The words of a file, sorted, as a recogniser's token list spells them.

    Raises:
        OSError: the file cannot be read.
        UserError: it is not UTF-8, has no word, or has characters that the recogniser lacks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8") from None
    spelling = Spelling([token_of(token) for token in tokens])
    words = sorted({spelling(word) for word in text.split()})
    if not words:
        raise UserError(f"{path} has no word")
    if unknown := spelling.unknown(words):
        raise UserError(f"{path}: the model's vocabulary lacks {describe(unknown)}: take these words out")
    return words
