"""Kaldi's and ESPnet's data directories: DIR/SET/wav.scp, text, utt2spk, and segments where recordings are cut."""

from collections.abc import Iterator
from pathlib import Path

from espnet_pinch.corpus.on_disk import OnDisk
from espnet_pinch.corpus.way import Asked, Row, Way, find_path, register
from espnet_pinch.data.kaldi_dir import SOURCES, read_joined, read_lines
from espnet_pinch.errors import UserError

_CHANNELS = {"A": "0", "B": "1"}  # of telephone speech, as the field behind a segment's end may name them


@register
class Kaldi(Way):
    name = "kaldi"
    summary = "data directories of Kaldi or ESPnet: DIR/SET/wav.scp, text, utt2spk, segments"
    patterns = (*SOURCES, "segments")
    place = 10

    def rows(self, asked: Asked) -> Iterator[Row]:
        """See the base class. If DIR itself is a data directory, it has no splits."""
        folder = asked.source
        if (folder / "wav.scp").is_file():
            yield from _rows(folder, "")
            return
        sets = sorted(path.parent for path in folder.glob("*/wav.scp"))
        if not sets:
            raise UserError(f"{folder} has no data directories: no SET/wav.scp")
        for one in sets:
            if asked.wants(one.name):
                yield from _rows(one, one.name)


def _rows(folder: Path, split: str) -> Iterator[Row]:
    found: list[Path] = []
    for name in SOURCES:
        if not (folder / name).is_file():
            alone = "; where speakers are not known, each utterance is its own: UTTERANCE UTTERANCE"
            raise UserError(f"{folder} has no file {name}{alone if name == 'utt2spk' else ''}")

    def audio(id_: str, path: str) -> str:
        if not path:
            raise UserError(f"{folder}/wav.scp: {id_} has no path")
        if path.endswith("|") or path.startswith("|"):
            raise UserError(
                f"{folder}/wav.scp: {id_} is a command ({path!r}); none is run here: write its output to a file first"
            )
        return find_path(path, folder, found)

    def row(id_: str, text: str, speaker: str, path: str, **part) -> Row:
        return Row(audio(id_, path), text, f"{folder}, utterance {id_}", id_, speaker, split, **part)

    if not (folder / "segments").is_file():
        for id_, path, text, speaker in read_joined(folder, SOURCES):
            yield row(id_, text, speaker, path)
        return
    recordings = OnDisk()
    for id_, path in read_lines(folder / "wav.scp"):
        recordings.add(id_, path, f"{folder}/wav.scp")
    for id_, segment, text, speaker in read_joined(folder, ("segments", "text", "utt2spk")):
        where = f"{folder}/segments: utterance {id_}"
        try:
            recording, begin, stop, *more = segment.split()
            start, end = float(begin), float(stop)
            [channel] = [int(_CHANNELS.get(name, name)) for name in more] if more else [None]
        except ValueError:
            raise UserError(
                f"{where} must have a recording, a start and an end in seconds, and perhaps a channel (0, 1 or A, B), "
                f"not {segment!r}"
            ) from None
        file = recordings.find(recording)
        if file is None:
            raise UserError(f"{where} is of the recording {recording}, which wav.scp lacks")
        part = {"start": start, "end": None if end == -1 else end}  # -1 is Kaldi's name of the file's end
        yield row(id_, text, speaker, file, **part, channel=channel, recording=recording)
