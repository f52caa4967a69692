"""lhotse's manifests: recordings and supervisions, or cuts, as JSON lines. lhotse itself is not needed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet_pinch.corpus.columns import plain
from espnet_pinch.corpus.on_disk import OnDisk
from espnet_pinch.corpus.tables import read_json_lines
from espnet_pinch.corpus.way import Asked, Row, Way, find_path, register
from espnet_pinch.errors import UserError

_NAME = re.compile(r"(?:(?P<before>.+)[_-])?(?P<kind>recordings|supervisions|cuts)(?:[_-](?P<split>.+))?\.jsonl(\.gz)?")


@register
class Lhotse(Way):
    name = "lhotse"
    summary = (
        "lhotse's manifests, recordings and supervisions or cuts:\n"
        "DIR/SET/cuts.jsonl[.gz], DIR/NAME_cuts_SET.jsonl[.gz]"
    )
    patterns = ("*.jsonl", "*.jsonl.gz")
    place = 40

    def rows(self, asked: Asked) -> Iterator[Row]:
        """See the base class. Of the files of a set, cuts come first. A set of files without a name has no split."""
        sets = _manifests(asked.source)
        if not sets:
            raise UserError(
                f"--lhotse: {asked.source} has no manifests: SET/cuts.jsonl.gz, or SET/recordings.jsonl.gz and "
                "SET/supervisions.jsonl.gz; or NAME_cuts_SET.jsonl.gz and so on"
            )
        for split, files in sets.items():
            if split and not asked.wants(split):
                continue
            if "cuts" in files:
                yield from _cuts(files["cuts"], split, asked)
            elif len(files) == 2:
                yield from _supervisions(files["recordings"], files["supervisions"], split)
            else:
                lacks = next(iter({"recordings", "supervisions"} - set(files)))
                raise UserError(f"--lhotse: {next(iter(files.values()))} has no {lacks} beside it")


def _manifests(folder: Path) -> dict[str, dict[str, Path]]:
    """``{split: {kind: file}}``."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((*folder.glob("*.jsonl*"), *folder.glob("*/*.jsonl*"))):
        if match := _NAME.fullmatch(path.name):
            split = match["split"] or ("" if path.parent == folder else path.parent.name)
            kinds = found.setdefault(split, {})
            if match["kind"] in kinds:
                raise UserError(f"--lhotse: both {kinds[match['kind']]} and {path} are of the set {split!r}")
            kinds[match["kind"]] = path
    return found


class _Recordings:
    """From recordings, as lhotse describes them, to the file that holds a channel."""

    def __init__(self, folder: Path):
        self._folder, self._found = folder, list[Path]()

    def audio(self, recording: dict[str, Any], channel: Any, place: str) -> tuple[str, int | None, float]:
        """File, channel in it (None for all) and length in seconds.

        Args:
            channel: as a supervision or a cut states it: a number, several, or None.

        Raises:
            KeyError, TypeError, ValueError: the recording is not as lhotse writes it.
            UserError: its audio is not in one file, or is changed while it is read, or is of some channels of several.
        """
        if recording.get("transforms"):
            raise UserError(f"{place}: the recording is changed while it is read (transforms): save its audio first")
        sources = recording["sources"]
        wanted = {channel} if isinstance(channel, int) else set(channel or ())
        fitting = [source for source in sources if not wanted or wanted & set(source["channels"])]
        if len(fitting) != 1:
            raise UserError(f"{place}: the recording's audio is in {len(fitting)} files: make one of them")
        [source] = fitting
        if source["type"] != "file":
            raise UserError(f"{place}: the recording is of the type {source['type']!r}; only files are read")
        inside = [position for position, of in enumerate(source["channels"]) if of in wanted]
        if 1 < len(inside) < len(source["channels"]):
            raise UserError(
                f"{place} is of {len(inside)} channels of {len(source['channels'])}: give one, or all of them"
            )
        single = inside[0] if len(inside) == 1 and len(source["channels"]) > 1 else None
        return find_path(source["source"], self._folder, self._found), single, float(recording["duration"])


def _row(
    supervision: dict[str, Any],
    begin: float,
    audio: tuple[str, int | None, float],
    recording: str,
    place: str,
    split: str,
) -> Row:
    """The utterance of a supervision.

    Args:
        begin: seconds that are added to its start.
        audio: as ``_Recordings.audio`` gives it.
        recording: its name.
    """
    path, channel, length = audio
    start = begin + float(supervision["start"])
    stop = start + float(supervision["duration"])
    whole = start < 0.001 and stop > length - 0.001  # less than a millisecond is no reason to cut a file
    return Row(
        audio=path,
        text=plain(supervision.get("text"), f"{place}: text"),
        place=place,
        id=plain(supervision["id"], f"{place}: id"),
        speaker=plain(supervision.get("speaker"), f"{place}: speaker"),
        split=split,
        start=0.0 if whole else round(start, 8),
        end=None if whole else round(stop, 8),
        channel=channel,
        recording=recording,
    )


def _supervisions(recordings: Path, supervisions: Path, split: str) -> Iterator[Row]:
    known = OnDisk()  # a supervision may be of any of them
    for line, value in read_json_lines(recordings):
        wanted = {name: value.get(name) for name in ("sources", "duration", "transforms")}
        known.add(str(value.get("id")), json.dumps(wanted), f"{recordings}, line {line}")
    reader = _Recordings(recordings.parent)
    for line, value in read_json_lines(supervisions):
        place = f"{supervisions}, line {line}"
        try:
            name = str(value["recording_id"])
            recording = known.find(name)
            if recording is None:
                raise UserError(f"{place} is of the recording {name}, which {recordings.name} lacks")
            audio = reader.audio(json.loads(recording), value.get("channel"), place)
            yield _row(value, 0.0, audio, name, place, split)
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{place} is not a supervision of lhotse, or its recording is none: {error}") from None


def _cuts(cuts: Path, split: str, asked: Asked) -> Iterator[Row]:
    reader, silent = _Recordings(cuts.parent), 0
    for line, value in read_json_lines(cuts):
        place = f"{cuts}, line {line}"
        try:
            if value.get("type", "MonoCut") not in ("MonoCut", "MultiCut") or "recording" not in value:
                kind = value.get("type")
                raise UserError(
                    f"{place}: a cut of the type {kind!r} has no recording of its own: save its audio first"
                )
            silent += not value["supervisions"]
            for supervision in value["supervisions"]:
                channel = supervision.get("channel", value.get("channel"))
                audio = reader.audio(value["recording"], channel, place)
                name = str(value["recording"].get("id"))
                yield _row(supervision, float(value["start"]), audio, name, place, split)
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{place} is not a cut of lhotse, with its recording: {error}") from None
    if silent:
        asked.say(f"{cuts}: {silent:,} cuts have no supervision, so no utterance")
