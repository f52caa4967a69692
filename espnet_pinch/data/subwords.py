"""Subword tokens: a sentencepiece model of transcripts, and its token list as ESPnet's recipes write it."""

import base64
import functools
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.data.tokens import WORD
from espnet_pinch.errors import UserError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

FILE = "bpe.model"  # sentencepiece's model, in every folder that needs one
_SPECIAL = 3  # sentencepiece's first pieces: <unk>, <s>, </s>


def to_text(model: bytes) -> str:
    """The bytes of ``FILE`` for a file that holds text: base64."""
    return base64.b64encode(model).decode()


def from_text(text: str) -> bytes:
    """The inverse of ``to_text``; raises ValueError for another text."""
    return base64.b64decode(text, validate=True)


def train(texts: Iterable[str], size: int) -> bytes:
    """Train sentencepiece's unigram model, as ESPnet's ``--bpemode unigram``.

    All characters of the texts become pieces. Unlike ESPnet's, it changes no character (no NFKC).

    Args:
        texts: transcripts.
        size: number of tokens of the token list, ESPnet's ``--nbpe``.

    Returns: the model; ``FILE`` has these bytes.

    Raises:
        UserError: the texts support no such number, and which they do; they have no character, or have the ``WORD``.
    """
    import sentencepiece

    texts = list(filter(None, texts))
    if not texts:
        raise UserError("the training transcripts have no character: there are no subwords to find")
    if any(WORD in text for text in texts):
        raise UserError(f"the training transcripts have {WORD} (U+2581), which subwords keep for spaces: take it out")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            normalization_rule_name="identity",
            # "<" stays alone: a piece such as "<A>" would be read as a special token.
            user_defined_symbols=["<"] if any("<" in text for text in texts) else [],
            max_sentence_length=1 << 30,  # bytes; longer ones would be left out in silence
            num_threads=1,  # the order of sums, and with it the model, depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        if most := re.search(r"too high .* value <= (\d+)", str(error)):
            raise UserError(f"--nbpe {size} is more than the training transcripts support: {most[1]} at most") from None
        if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"--nbpe {size} is less than the characters of the training transcripts need: {least[1]} at least"
            ) from None
        raise
    return model.getvalue()


def tokens_of(model: bytes) -> list[str]:
    """The token list of a model, in ESPnet's order: ``train``'s ``size`` tokens.

    Raises:
        UserError: as ``encode``.
    """
    processor = _processor(model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    return ["<blank>", "<unk>", *pieces[_SPECIAL:], "<sos/eos>"]


def encode(model: bytes, text: str) -> list[str]:
    """The tokens of a transcript. A character that the model lacks stands among them as it is.

    >>> encode(train(["ONE TWO", "TWO ONE"] * 9, 11), "TWO ONE")
    ['▁TWO', '▁ONE']

    Raises:
        UserError: the model is damaged.
    """
    return _processor(model).encode(text, out_type=str)


def read(folder: str | os.PathLike) -> bytes:
    """The model that a folder has; nothing if it has none.

    Raises:
        UserError: as ``encode``.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return b""
    model = path.read_bytes()
    try:
        _processor(model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return model


@functools.lru_cache(maxsize=4)
def _processor(model: bytes) -> "SentencePieceProcessor":
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise UserError("the sentencepiece model is damaged") from None
