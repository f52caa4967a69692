"""Utterances in columns, of a table or of anything else that has names and values."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from espnet_pinch.corpus.way import Asked, Row
from espnet_pinch.errors import UserError, one_line

NEEDED = ("audio", "text")
KNOWN = (*NEEDED, "id", "speaker", "start", "end", "duration", "split", "channel")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of a corpus holds what.

    Attributes:
        of: ``{name of ours: name in the corpus}``.
    """

    of: Mapping[str, str]

    @classmethod
    def find(
        cls,
        names: Collection[str],
        asked: Asked,
        where: str,
        other_names: Mapping[str, Iterable[str]] | None = None,
        place: str = "",
    ) -> "Columns":
        """
        Args:
            names: the corpus' own.
            where: they stand, for messages.
            place: more exactly, where only some rows have these names.
            other_names: ``{name of ours: names that a corpus of this kind may give it}``.

        Raises:
            UserError: a needed column is missing, or the user has named one that is not there. Columns that are not
                used are said.
        """
        of = {}
        for ours in KNOWN:
            given = asked.columns.get(ours)
            if given is not None and given not in names:
                raise UserError(f"{place or where} has no column {given!r}; it has: {_listed(names)}")
            of[ours] = given or next((name for name in (ours, *(other_names or {}).get(ours, ())) if name in names), "")
        missing = [name for name in NEEDED if not of[name]]
        if missing:
            raise UserError(
                f"{place or where} has no column {' and no column '.join(missing)}; it has: {_listed(names)}. Say "
                f'which they are: --columns "{" ".join(f"{name}=NAME" for name in missing)}"'
            )
        of = {ours: theirs for ours, theirs in of.items() if theirs}
        unused = [name for name in names if name not in of.values()]
        if unused:
            asked.say(f"{where}: columns that are not used: {_listed(unused)}")
        return cls(of)

    def row(self, values: Mapping[str, Any], place: str, audio: Callable[[str], str], **known) -> Row:
        """The utterance of a row.

        Args:
            values: by the corpus' names; None, "" and a number that is none (NaN) stand for nothing.
            place: of the row, for messages.
            audio: gives the row's audio, from what its column holds.
            known: fields of ``Row`` that the columns do not state.

        Raises:
            UserError: a time or channel is no number, a field is neither text nor number, or the row has no audio.
        """

        def text(name: str) -> str:
            column = self.of.get(name)
            return plain(values.get(column), f"{place}: {column}") if column else ""

        def number(name: str) -> float | None:
            value = text(name).strip()
            try:
                found = float(value) if value else None
            except ValueError:
                found = math.nan
            if found is not None and not math.isfinite(found):
                raise UserError(f"{place}: {self.of[name]} must be a number, not {one_line(value)!r}")
            return found

        named = text("audio").strip()
        if not named:
            raise UserError(f"{place} names no audio")
        start, end, duration, channel = number("start") or 0.0, number("end"), number("duration"), number("channel")
        if channel is not None and channel != int(channel):
            raise UserError(f"{place}: {self.of['channel']} must be a whole number, not {channel:g}")
        if "start" in self.of or "end" in self.of:  # a length alone describes the whole file
            end = start + duration if end is None and duration is not None else end
        fields = {"id": text("id").strip(), "speaker": text("speaker").strip(), "split": text("split").strip()}
        fields = {name: value for name, value in fields.items() if value or name not in known}
        times = {"start": start, "end": end, "channel": None if channel is None else int(channel)}
        return Row(
            audio=audio(named), text=text("text"), place=place, **{"recording": named, **known, **fields, **times}
        )


def plain(value: Any, where: str) -> str:
    """A text, or a number as text; None and NaN, which pandas writes for nothing, are "".

    Args:
        where: the value is, for the message.

    Raises:
        UserError: it is something else, such as a list.
    """
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where} must be a text or a number, not {one_line(value)[:60]}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(one_line(name) or repr(name) for name in names)
