"""Data sets of the Hugging Face hub that are on the disk: Common Voice, audiofolder, and what save_to_disk has left."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath

from espnet_pinch.corpus.columns import Columns
from espnet_pinch.corpus.splits import SPLIT_NAMES
from espnet_pinch.corpus.tables import read_json_lines, read_separated
from espnet_pinch.corpus.way import Asked, Row, Way, beside, register
from espnet_pinch.errors import UserError

_NAMES = {  # of columns, beside our own
    "audio": ("path", "file_name"),
    "text": ("sentence", "transcription", "transcript"),
    "speaker": ("client_id", "speaker_id"),
    "id": ("utterance_id",),
}
_SAVED = ("dataset_dict.json", "state.json")
_METADATA = ("metadata.csv", "metadata.jsonl")


@register
class HuggingFace(Way):
    name = "hf"
    summary = (
        "a Hugging Face data set: Common Voice (clips/, train.tsv), audiofolder\n"
        "(metadata.csv or .jsonl), or what save_to_disk leaves"
    )
    has_columns = True
    patterns = ("*.tsv", "metadata.*", "*.arrow", *_SAVED)
    place = 30

    def rows(self, asked: Asked) -> Iterator[Row]:
        folder = asked.source
        if any((folder / name).is_file() for name in _SAVED):
            yield from _saved(asked)
        elif (folder / "clips").is_dir():
            yield from _common_voice(asked)
        else:
            yield from _audiofolder(asked)

    def file_of(self, audio: str) -> str:
        saved = _SavedAudio.parse(audio)
        return str(saved.folder / "state.json") if saved else super().file_of(audio)

    @contextlib.contextmanager
    def sound_file(self, audio: str) -> Iterator[str]:
        saved = _SavedAudio.parse(audio)
        if not saved:
            yield audio
            return
        held = _load(saved.folder)[saved.row][saved.column]
        with tempfile.NamedTemporaryFile(suffix=PurePath(held["path"] or "").suffix) as file:
            file.write(held["bytes"])
            file.flush()
            yield file.name


def _common_voice(asked: Asked) -> Iterator[Row]:
    folder = asked.source
    tables = [path for path in sorted(folder.glob("*.tsv")) if asked.wants(path.stem)]
    for table in tables:
        columns = None
        # Its tables have no quotation marks of their own: one in a sentence is part of it.
        for line, values in read_separated(table, "\t", quoted=False):
            columns = columns or Columns.find(values, asked, str(table), _NAMES)
            yield columns.row(values, f"{table}, line {line}", partial(beside, folder / "clips"), split=table.stem)


def _audiofolder(asked: Asked) -> Iterator[Row]:
    folder = asked.source
    tables = [path for name in _METADATA for path in (folder / name, *sorted(folder.glob(f"*/{name}")))]
    tables = [path for path in tables if path.is_file()]
    if not tables:
        other = next(folder.glob("**/*.parquet"), None)
        hint = f"; {other.name} is Parquet: load it with the library datasets, and save_to_disk" if other else ""
        raise UserError(
            f"--hf: {folder} has neither clips/ and train.tsv, nor metadata.csv or metadata.jsonl, nor what "
            f"save_to_disk leaves{hint}"
        )
    for table in tables:
        own = "" if table.parent == folder else table.parent.name
        if own and not asked.wants(own):
            continue
        read = read_json_lines(table) if table.suffix == ".jsonl" else read_separated(table, ",")
        columns = None
        for line, values in read:
            columns = columns or Columns.find(values, asked, str(table), _NAMES)
            row = columns.row(values, f"{table}, line {line}", partial(beside, table.parent), split=own)
            yield row if row.split else _with_split(row, table.parent)


def _with_split(row: Row, folder: Path) -> Row:
    """The row, with the split that the folder of its audio is named after, if it is."""
    parts = PurePath(row.audio).relative_to(folder).parts if PurePath(row.audio).is_relative_to(folder) else ()
    named = next((part for part in parts[:-1] if part in SPLIT_NAMES), "")
    return dataclasses.replace(row, split=named)


# ---- What datasets' save_to_disk has left


class _SavedAudio:
    """The audio of a row in a saved data set, which holds the bytes of a sound file: FOLDER#COLUMN#ROW."""

    def __init__(self, folder: Path, column: str, row: int):
        self.folder, self.column, self.row = folder, column, row

    def __str__(self) -> str:
        return f"{self.folder}#{self.column}#{self.row}"

    @classmethod
    def parse(cls, audio: str) -> "_SavedAudio | None":
        folder, *rest = audio.rsplit("#", 2)
        if len(rest) != 2 or not rest[1].isdecimal() or not Path(folder, "state.json").is_file():
            return None
        return cls(Path(folder), rest[0], int(rest[1]))


_loaded: dict[Path, object] = {}


def _load(folder: Path):
    """A saved data set; its files are mapped into memory. Its audio is not decoded."""
    if folder not in _loaded:
        from datasets import Audio, load_from_disk
        from datasets.utils import disable_progress_bars

        disable_progress_bars()
        try:
            found = load_from_disk(str(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--hf: {folder} is no data set of save_to_disk: {error}") from None
        for name, feature in found.features.items():
            if isinstance(feature, Audio):
                found = found.cast_column(name, Audio(decode=False))
        _loaded[folder] = found
    return _loaded[folder]


def _saved(asked: Asked) -> Iterator[Row]:
    folder = asked.source
    splits = {"": folder}
    if (folder / "dataset_dict.json").is_file():
        try:
            names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        except (ValueError, KeyError, TypeError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{folder / 'dataset_dict.json'} does not name the splits of the data set")
        splits = {name: folder / name for name in names}
    for split, part in splits.items():
        if split and not asked.wants(split):
            continue
        data = _load(part)
        columns = Columns.find(data.column_names, asked, str(part), _NAMES)
        yield from _saved_rows(data, part, split, columns)


def _saved_rows(data, part: Path, split: str, columns: Columns) -> Iterator[Row]:
    """The rows of a saved data set. Only where the bytes of its audio are is looked at: they are read later."""
    column = columns.of["audio"]
    flat = (
        data.flatten() if isinstance(data.features[column], dict) or hasattr(data.features[column], "decode") else data
    )
    held, path = f"{column}.bytes", f"{column}.path"
    labels = {name: feature.names for name, feature in data.features.items() if hasattr(feature, "int2str")}
    number = -1
    for batch in flat.with_format("arrow").iter(1000):
        inside = batch[held].is_valid().to_pylist() if held in batch.column_names else [False] * len(batch)
        batch = batch.drop_columns([held]) if held in batch.column_names else batch
        for values, has_bytes in zip(batch.to_pylist(), inside):
            number += 1
            for label, names in labels.items():  # stored as numbers; a negative one is no label
                of = values[label]
                values[label] = names[of] if of is not None and 0 <= of < len(names) else None
            name = values.get(path if path in values else column) or ""
            audio = str(_SavedAudio(part, column, number)) if has_bytes else name
            known = {"split": split, **({"recording": name} if has_bytes and name else {})}
            yield columns.row({**values, column: audio}, f"{part}, row {number}", partial(beside, part), **known)
