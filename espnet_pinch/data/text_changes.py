"""What the steps over the transcripts have changed: a file to look at for each set, and counts for the report."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from espnet_pinch.data.kaldi_dir import Utterance
from espnet_pinch.data.text_steps import TextSteps
from espnet_pinch.files import read_json, whole_file, write_json

RECORD = "text_steps.json"  # in the folder of a dump's sets


class TextChanges:
    """Applies steps to the transcripts of a set, and writes down each transcript that they change.

    Args:
        steps: what to apply.
        path: the file to write, "ID <tab> ORIGINAL <tab> RESULT" a line; it is not written if there are no steps.

    Attributes:
        counts: the number of transcripts that each step has changed.
        changed, emptied: the number of transcripts that are other ones now, and that have become empty.
    """

    def __init__(self, steps: TextSteps, path: Path):
        self._steps, self._path = steps, path
        self.counts: Counter[str] = Counter()
        self.changed = self.emptied = 0

    def apply(self, utterances: Iterable[Utterance]) -> Iterator[Utterance]:
        """The utterances with their new transcripts."""
        if not self._steps.names:
            self._path.unlink(missing_ok=True)  # of an earlier dump
            yield from utterances
            return
        with whole_file(self._path) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
            for u in utterances:
                text, changed = self._steps.trace(u.text)
                if text != u.text:
                    file.write(f"{u.id}\t{u.text}\t{text}\n")
                    self.changed += 1
                    self.emptied += not text
                self.counts.update(changed)
                yield dataclasses.replace(u, text=text)

    @property
    def said(self) -> str:
        """The counts on one line."""
        each = ", ".join(f"{name} {self.counts[name]:,}" for name in self._steps.names if self.counts[name])
        empty = f"; {self.emptied:,} of them are empty now" if self.emptied else ""
        return f"text: {self.changed:,} transcripts changed ({each}){empty}; see {self._path}"


def write_record(folder: Path, steps: TextSteps, changes: dict[str, TextChanges]) -> None:
    """Write which steps the sets of a dump have gone through, and how many transcripts each has changed."""
    counts = {name: {"changed": c.changed, "emptied": c.emptied, "steps": c.counts} for name, c in changes.items()}
    write_json(folder / RECORD, {"steps": steps.names, "sets": counts})


def read_record(folder: str | os.PathLike) -> dict:
    """What ``write_record`` has written; without steps if there is no such file."""
    path = Path(folder) / RECORD
    return read_json(path) if path.is_file() else {"steps": [], "sets": {}}
