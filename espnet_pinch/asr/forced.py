"""Forced alignment: where the tokens of a given transcript are. torchaudio finds the best path."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_pinch.asr.spans import Span, spans_of
from espnet_pinch.data.spelling import Spelling, describe
from espnet_pinch.data.subwords import encode
from espnet_pinch.data.tokens import SPACE, are_subwords, frames_needed, token_of
from espnet_pinch.errors import UserError

LARGEST = 4 << 30  # bytes that torchaudio may take: one for each frame and state


def align_tokens(ids: Sequence[int], log_probs: Tensor, blank: int) -> list[Span]:
    """The spans of given tokens on their most probable path.

    Args:
        ids: token indices, without the blank.
        log_probs: (frames, tokens), natural logarithms, on the CPU.
        blank: index of the blank.

    Raises:
        UserError: there are too few frames for the tokens, or too many for the memory.
    """
    if not ids:
        return []
    needed = frames_needed(ids)
    if len(log_probs) < needed:
        raise UserError(
            f"the audio is too short for the text: it has {len(log_probs)} frames, and the text needs {needed}"
        )
    if len(log_probs) * (2 * len(ids) + 1) > LARGEST:
        raise UserError(
            f"{len(log_probs):,} frames and {len(ids):,} characters are too many to align at once: cut the recording "
            "and its text into shorter ones"
        )
    from torchaudio.functional import forced_align  # 1 s

    path, _ = forced_align(log_probs[None].contiguous(), torch.tensor([ids], dtype=torch.int32), blank=blank)
    return spans_of(path[0].long(), log_probs, blank)


def ids_of(text: str, tokens: Sequence[str], model: bytes = b"") -> list[int]:
    """Token indices of a transcript, in the spelling of the vocabulary.

    Args:
        text: with one space between two words.
        tokens: the token list.
        model: sentencepiece's, where the tokens are subwords.

    Raises:
        UserError: the vocabulary lacks characters of the text, and the message names them; or the tokens are subwords
            and the model is not theirs.
    """
    index = {token_of(name): i for i, name in reversed(list(enumerate(tokens)))}
    spaces = [index[SPACE]] if SPACE in index else []
    spelled = Spelling(list(index))(text)
    lacking = Counter(char for char in spelled if char not in index and char != " ")
    if lacking:
        raise UserError(f"the model's vocabulary lacks {describe(lacking)}, which the text has: leave them out of it")
    if are_subwords(tokens):
        pieces = encode(model, spelled) if model else []
        if not model or not index.keys() >= set(pieces):
            raise UserError("the model's tokens are subwords, and it has no sentencepiece model of them to cut a text")
        return [index[piece] for piece in pieces]
    return [i for char in spelled for i in (spaces if char == " " else [index[char]])]
