"""Token lists, and the fit of a transcript to one."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from espnet_pinch.data.kaldi_dir import Utterance
from espnet_pinch.files import write_text

SPECIAL = ("<blank>", "<s>", "<sos/eos>", "<unk>", "<space>")


def tokens_of_texts(texts: Iterable[str]) -> list[str]:
    """Characters by falling frequency behind the special tokens, as the published wav2vec2 CTC vocabularies are.

    >>> tokens_of_texts(["ON NO", "NO"])
    ['<blank>', '<s>', '<sos/eos>', '<unk>', '<space>', 'N', 'O']
    """
    counts = Counter(char for text in texts for char in text if char != " ")
    return [*SPECIAL, *sorted(counts, key=lambda char: (-counts[char], char))]


def write_tokens(path: str | os.PathLike, tokens: Sequence[str]) -> None:
    """Write a token list, a token a line.

    Raises:
        ValueError: a token twice, or one that does not fit a line.
    """
    for token, count in Counter(tokens).items():
        if count > 1 or not token or "\n" in token or "\r" in token:
            what = "there twice" if count > 1 else "empty or has a new line"
            raise ValueError(f"the token {token!r} of the vocabulary is {what}; a token list cannot hold it")
    write_text(path, "".join(f"{token}\n" for token in tokens))


def match_case(text: str, tokens: Sequence[str]) -> str:
    """``text`` in lower or upper case where the vocabulary has letters of that case alone; in composed form (NFC)."""
    letters = "".join(token for token in tokens if len(token) == 1)
    has_lower, has_upper = letters != letters.upper(), letters != letters.lower()
    if has_lower and not has_upper:
        return unicodedata.normalize("NFC", text.lower())
    if has_upper and not has_lower:
        return unicodedata.normalize("NFC", text.upper())
    return text


def check_characters(utterances: Iterable[Utterance], tokens: Sequence[str], where: str) -> None:
    """Raises ValueError for a character that is not in the token list, naming it and its utterance."""
    known = {*tokens, " "}
    for u in utterances:
        for char in u.text:
            if char not in known:
                raise ValueError(
                    f"{where}: utterance {u.id} has the character {char!r} (U+{ord(char):04X}), "
                    f"which the vocabulary of {len(tokens)} tokens lacks"
                )


def frames_needed(text: str) -> int:
    """Least number of frames that CTC can align a transcript to: its length, and a blank between equal neighbours."""
    return len(text) + sum(a == b for a, b in zip(text, text[1:]))


def frames_of(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Frames that the convolutional feature extractor makes of a waveform."""
    for kernel, stride in zip(kernels, strides):
        samples = (samples - kernel) // stride + 1
    return samples
