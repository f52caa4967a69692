"""Read tables row by row: TSV and CSV with a header line, and JSON lines. Each may be compressed by gzip."""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from espnet_pinch.errors import UserError, one_line

JSON_LINES = (".jsonl", ".ndjson", ".json")
SEPARATORS = {".tsv": "\t", ".tab": "\t", ".txt": "\t", ".csv": ","}
_LONGEST = 1 << 24  # characters of a field: a quotation mark that nothing closes would take the rest of the file


def kind_of(path: Path) -> str:
    """The ending of a file's name that says how to read it: ".tsv" of "a.tsv.gz"."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def read_records(path: Path, quoted: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a table, of the kind that its name's ending says.

    Args:
        quoted: whether quotation marks of a TSV or CSV are marks of the format, and not part of the text.

    Raises:
        OSError: it cannot be read.
        UserError: it is of no such kind, or a line cannot be read; the message names the line.
    """
    kind = kind_of(path)
    if kind in JSON_LINES:
        yield from read_json_lines(path)
    elif kind in SEPARATORS:
        yield from read_separated(path, SEPARATORS[kind], quoted)
    else:
        known = ", ".join((*SEPARATORS, *JSON_LINES))
        raise UserError(f"{path}: the name of a table must end in one of {known}, which says how to read it")


def read_separated(path: Path, separator: str, quoted: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """As ``read_records``, of a table with a header line. The number is that of a row's last line."""
    csv.field_size_limit(_LONGEST)
    with _opened(path) as file:
        reader = csv.reader(
            file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
        )
        begun = 1  # where the next row begins
        try:
            head = [name.strip() for name in next(reader, [])]
            _check_head(head, path)
            begun = reader.line_num + 1
            for cells in reader:
                number, begun = reader.line_num, reader.line_num + 1
                if not cells:
                    continue  # an empty line
                if len(cells) != len(head):
                    raise UserError(f"{path}, line {number} has {len(cells)} columns, and the header {len(head)}")
                yield number, dict(zip(head, cells))
        except csv.Error as error:
            why = " (a quotation mark that is part of the text is written twice, in a quoted field)" if quoted else ""
            raise UserError(f"{path}, line {begun}: {error}{why}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text, near line {begun}: {error}") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged or cut short: {error}") from None


def _check_head(head: list[str], path: Path) -> None:
    if not any(head):
        raise UserError(f"{path} has no header line with the names of its columns")
    twice = [name for name, count in Counter(head).items() if count > 1]
    if twice:
        raise UserError(f"{path}: the column {twice[0]!r} is there twice")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As ``read_records``, of a file with a JSON object on each line."""
    with _opened(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number} is not JSON: {one_line(error)}") from None
                if not isinstance(value, dict):
                    raise UserError(f"{path}, line {number} is not a JSON object: {one_line(line)[:60]}")
                yield number, value
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number + 1} is not UTF-8 text: {error}") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged or cut short: {error}") from None


def _opened(path: Path) -> TextIO:
    """A text file without its byte order mark. Line ends stay as they are: the csv module reads them."""
    binary = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
