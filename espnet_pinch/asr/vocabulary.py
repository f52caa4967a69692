"""Read the vocabulary of a CTC head from a Hugging Face folder under ESPnet's names, and write it back."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from transformers import PretrainedConfig, PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from espnet_pinch.asr.family import find_family
from espnet_pinch.data.tokens import SPACE, WORD, are_subwords, line_name, surface, token_of
from espnet_pinch.errors import UserError, one_line

FILE = "vocab.json"
Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a Hugging Face folder says of the outputs of a CTC head.

    Attributes:
        names: ``{row of the head: token}``; a row may have none.
        blank: row of CTC's blank.
        delimiter, unknown, end: the tokens of the vocabulary for a space, for an unknown character and for the end of a
            sentence; None where there is none.
    """

    names: Mapping[int, str]
    blank: int
    delimiter: str | None
    unknown: str | None
    end: str | None


def read_tokens(folder: str | os.PathLike, config: PretrainedConfig) -> tuple[list[str], list[int]]:
    """The vocabulary of a CTC head under ESPnet's names, and the head's row for each token.

    In ESPnet the blank comes first, a space is "<space>", and both ends of a sentence are "<sos/eos>". Another token
    with one of these names, or that of "<unk>", gets its row appended: "<unk#12>". In a vocabulary of subwords, a space
    at the beginning of a token becomes ``WORD``.

    Returns: tokens, rows.

    Raises:
        FileNotFoundError: the file of the vocabulary is missing.
        UserError: it is damaged, does not fit the head, or lacks a token that is needed.
    """
    family = find_family(config.model_type)
    path = Path(folder) / family.vocabulary_file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it names the outputs of the CTC head")
    found = family.read_vocabulary(Path(folder), config)
    subwords = any(len(name) > 1 and name.startswith(" ") for name in found.names.values())
    roles: dict[str | None, str] = {
        found.delimiter: WORD if subwords else SPACE,
        found.unknown: "<unk>",
        found.end: "<sos/eos>",
    }
    rows = [found.blank] + [row for row in range(config.vocab_size) if row != found.blank]
    tokens = ["<blank>"]
    reserved = {"<blank>", *roles.values()}
    for row in rows[1:]:
        name = found.names.get(row, f"<unused{row}>")
        own = roles.pop(name, None)
        listed = f"{WORD}{name[1:]}" if subwords and name.startswith(" ") else line_name(name)
        tokens.append(own or (f"<{listed.strip('<>')}#{row}>" if listed in reserved else listed))
    for needed, where in ((WORD if subwords else SPACE, "word_delimiter_token"), ("<unk>", "unk_token")):
        if needed not in tokens:
            raise UserError(
                f"{path} has no token for {needed}: name the token for it in tokenizer_config.json ({where})"
            )
    return tokens, rows


def read_vocab_json(folder: Path, config: PretrainedConfig) -> Vocabulary:
    """The vocabulary in vocab.json, as ``Family.read_vocabulary``."""
    path = folder / FILE
    _check_file(path)
    tokenizer = read_tokenizer(Wav2Vec2CTCTokenizer, folder)
    names = _rows(tokenizer, config, path)
    return Vocabulary(
        names,
        blank=_blank(tokenizer, config, path, names),
        # The tokenizer's own property ignores the delimiter that a folder sets.
        delimiter=first_of((tokenizer.special_tokens_map.get("word_delimiter_token"), " "), tokenizer.encoder),
        unknown=first_of((tokenizer.unk_token, "<unk>", "[UNK]"), names.values()),
        end=tokenizer.eos_token,
    )


def read_tokenizer(kind: type[Tokenizer], folder: Path) -> Tokenizer:
    """transformers' tokenizer of a folder, of a class of its own; raises UserError if it cannot be read."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many types
        raise UserError(f"the tokenizer of {folder} cannot be read: {one_line(error)}") from None


def _check_file(path: Path) -> None:
    """Raise if vocab.json is not a JSON object in UTF-8; transformers would not name file and reason."""
    data = path.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        raise UserError(f"{path} begins with a byte order mark, which transformers refuses: save it without one")
    try:
        vocabulary = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise UserError(f"{path} is not a vocabulary: it must be a JSON object of tokens and their rows")


def _once(pairs: list[tuple]) -> dict:
    """A JSON object; raises UserError if it has a key twice. Python's reader would take the last value."""
    counts = Counter(key for key, _ in pairs)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]!r} is there twice")
    return dict(pairs)


def _rows(tokenizer: Wav2Vec2CTCTokenizer, config: PretrainedConfig, path: Path) -> dict[int, str]:
    """``{row: token}`` of the tokens that have a row in the head.

    Tokens that a tokenizer adds, such as "<s>", often have none; the model cannot output them.
    """
    vocabulary: dict[str, int] = tokenizer.encoder
    for token, row in vocabulary.items():
        if not isinstance(row, int) or isinstance(row, bool) or row < 0:
            raise UserError(f"{path} is damaged: the token {token!r} has the row {row!r}")
    own = within_head(vocabulary, config, path)
    return {row: token for token, row in tokenizer.get_vocab().items() if row < config.vocab_size} | own


def within_head(vocabulary: Mapping[str, int], config: PretrainedConfig, path: Path) -> dict[int, str]:
    """``{row: token}`` of the tokens that the head has a row for.

    Args:
        vocabulary: ``{token: row}``.
        path: it is from.

    Raises:
        UserError: a character has no row, or two tokens have the same.
    """
    row, count = Counter(vocabulary.values()).most_common(1)[0]
    if count > 1:
        twice = " and ".join(repr(token) for token, r in vocabulary.items() if r == row)
        raise UserError(f"{path} is damaged: {twice} have the same row {row}")
    names = {row: token for token, row in vocabulary.items()}
    for row, token in sorted(names.items()):
        if row >= config.vocab_size and len(token) == 1:
            raise UserError(
                f"{path} has the token {token!r} in row {row}, but the head has {config.vocab_size} rows (vocab_size)"
            )
    return {row: token for row, token in names.items() if row < config.vocab_size}


def _blank(tokenizer: Wav2Vec2CTCTokenizer, config: PretrainedConfig, path: Path, names: dict[int, str]) -> int:
    """The row of CTC's blank. transformers trains with that of the configuration and decodes with the tokenizer's.

    Raises:
        UserError: the two differ, or there is none.
    """
    trained = config.pad_token_id
    decoded = next((row for row, name in names.items() if name == tokenizer.pad_token), None)
    if trained is None and decoded is None:
        raise UserError(f"{path} has no blank: neither config.json nor the tokenizer names a token for padding")
    if trained is not None and not 0 <= trained < config.vocab_size:
        raise UserError(
            f"{path.parent}/config.json has the blank (pad_token_id) in row {trained}, but the head has "
            f"{config.vocab_size} rows"
        )
    if None not in (trained, decoded) and trained != decoded:
        raise UserError(
            f"which token is CTC's blank? {path.parent}/config.json says {names.get(trained)!r} (pad_token_id "
            f"{trained}), the tokenizer says {tokenizer.pad_token!r} (row {decoded}); correct the one that the model "
            "was not trained with"
        )
    return decoded if trained is None else trained


def first_of(tokens: Sequence[str | None], names: Collection[str]) -> str | None:
    """The first of ``tokens`` that the vocabulary has."""
    return next((token for token in tokens if token in names), None)


@dataclasses.dataclass(frozen=True)
class StockNames:
    """The names that a token list has in transformers: the inverse of ``read_tokens``, except for special tokens.

    transformers joins the tokens that a model says. So a subword has a space in the place of ``WORD``.

    Attributes:
        names: of the tokens, in their order; the first is the blank's.
        special: ``{role of a tokenizer's settings: name}``, such as "eos_token"; None where there is no such token.
    """

    names: list[str]
    special: dict[str, str | None]


def stock_names(tokens: Sequence[str], space: str = "|") -> StockNames:
    """
    Args:
        tokens: ESPnet's names, "<blank>" first.
        space: the name of a space, if no other token has it.
    """
    taken = {token_of(token) for token in tokens}
    special = {
        "<blank>": _free(taken, "<pad>", "[PAD]", "<ctc_blank>"),
        SPACE: " " if are_subwords(tokens) else _free(taken, space, " ", "_", WORD),
        "<sos/eos>": _free(taken, "</s>", "[EOS]", "<end>"),
    }
    return StockNames(
        [special.get(token) or surface(token) or token_of(token) for token in tokens],
        {
            "word_delimiter_token": special[SPACE],
            "pad_token": special["<blank>"],
            "unk_token": "<unk>" if "<unk>" in tokens else None,
            "bos_token": "<s>" if "<s>" in tokens else None,
            "eos_token": special["<sos/eos>"] if "<sos/eos>" in tokens else None,
        },
    )


def save_vocabulary(folder: str | os.PathLike, tokens: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """Write vocab.json for ESPnet's token list.

    Returns: the tokenizer of that file.
    """
    found, path = stock_names(tokens), Path(folder) / FILE
    rows = {name: row for row, name in enumerate(found.names)}
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return Wav2Vec2CTCTokenizer(str(path), **found.special)


def _free(taken: Collection[str], *names: str) -> str:
    """The first of ``names`` that no other token has."""
    return next(name for name in names if name not in taken)
