"""Token lists: names that fit a line, the text of a token, and the number of frames that CTC needs."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from espnet_pinch.errors import UserError
from espnet_pinch.files import write_text

SPACE = "<space>"
WORD = "\u2581"  # begins a subword that begins a word, and stands for the space before it; sentencepiece's and ESPnet's
SPECIAL = ("<blank>", "<s>", "<sos/eos>", "<unk>", SPACE)


def tokens_of_texts(texts: Iterable[str]) -> list[str]:
    """The special tokens, then the characters, the most frequent first, as in the published wav2vec2 CTC vocabularies.

    >>> tokens_of_texts(["ON NO", "NO"])
    ['<blank>', '<s>', '<sos/eos>', '<unk>', '<space>', 'N', 'O']
    """
    counts = Counter(char for text in texts for char in text if char != " ")
    return [*SPECIAL, *by_frequency(counts)]


def by_frequency(counts: Counter[str]) -> list[str]:
    """Characters, the most frequent first; equally frequent ones in the order of their code points."""
    return sorted(counts, key=lambda char: (-counts[char], char))


def line_name(token: str) -> str:
    """The name of a character in a token list. ESPnet strips the lines, so white space is written as its code; so is
    ``WORD``, which would be read as a subword.

    >>> line_name("\\u00a0"), line_name("A")
    ('<U+00A0>', 'A')
    """
    return f"<U+{ord(token):04X}>" if len(token) == 1 and (token.isspace() or token == WORD) else token


def token_of(name: str) -> str:
    """The inverse of ``line_name``.

    >>> token_of("<U+00A0>") == "\\u00a0", token_of("A")
    (True, 'A')
    """
    code = re.fullmatch(r"<U\+([0-9A-F]{4,6})>", name)
    return chr(int(code[1], 16)) if code else name


def text_of(names: Iterable[str]) -> str:
    """Join tokens of a token list to a transcript. Tokens in angle brackets that stand for no text are left out.

    >>> text_of(["<s>", "O", "N", "<space>", "<unk>", "O"])
    'ON O'
    """
    return " ".join(word for word, _ in words_of(names))


def words_of(names: Iterable[str]) -> list[tuple[str, list[int]]]:
    """The words of tokens of a token list, each with the positions of the tokens that it is made of.

    >>> words_of(["<s>", "O", "N", "<space>", "<unk>", "O"])
    [('ON', [1, 2]), ('O', [5])]
    >>> words_of(["\\u2581O", "N", "\\u2581", "O"])
    [('ON', [0, 1]), ('O', [3])]
    """
    words: list[tuple[str, list[int]]] = []
    within = False
    for i, name in enumerate(names):
        for char in surface(name):
            if char.isspace():
                within = False
            elif within:
                word, places = words[-1]
                words[-1] = word + char, places if places[-1] == i else [*places, i]
            else:
                words.append((char, [i]))
                within = True
    return words


def surface(name: str) -> str:
    """The text that a token of a token list stands for; "" for one that stands for none.

    >>> surface("<space>"), surface("A"), surface("<unk>"), surface("\\u2581A")
    (' ', 'A', '', ' A')
    """
    if name == SPACE:
        return " "
    if name.startswith(WORD):
        return f" {name[1:]}"
    token = token_of(name)
    return "" if len(token) > 1 and token.startswith("<") else token


def is_token_list(value: object) -> bool:
    """Whether what a file states as tokens is a list of names."""
    return isinstance(value, list) and all(isinstance(token, str) for token in value)


def are_subwords(tokens: Iterable[str]) -> bool:
    """Whether a token list is of subwords, not of characters."""
    return any(name.startswith(WORD) for name in tokens)


def write_tokens(path: str | os.PathLike, tokens: Sequence[str]) -> None:
    """Write a token list, one token per line.

    Raises:
        UserError: a token is there twice, or does not fit on a line as ESPnet reads it.
    """
    for token, count in Counter(tokens).items():
        if count > 1 or token != token.rstrip() or not token or "\n" in token or "\r" in token:
            what = "there twice" if count > 1 else "empty, ends in white space or has a new line"
            raise UserError(f"the token {token!r} of the vocabulary is {what}; a token list cannot hold it")
    write_text(path, "".join(f"{token}\n" for token in tokens))


def frames_needed(text: Sequence) -> int:
    """Least number of frames that CTC can align a transcript to: its length plus a blank between equal neighbours.

    Args:
        text: characters, or token indices.
    """
    return len(text) + sum(a == b for a, b in zip(text, text[1:]))
