"""Temporary files of SQLite, and a dictionary of texts in one, for the recordings of large corpora."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from espnet_pinch.errors import UserError
from espnet_pinch.files import disk_errors


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Inside the block SQLite has its temporary files in a folder, on the disk that has room for the corpus.

    Raises:
        OSError: the disk is full; the message names the folder.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["SQLITE_TMPDIR"] = str(folder.absolute())
        try:
            yield
        finally:
            del os.environ["SQLITE_TMPDIR"]


class OnDisk:
    """Texts by their names, in a temporary file (SQLite removes it); little of it is in memory at a time."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("")
        self._base.execute("CREATE TABLE texts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def add(self, name: str, value: str, where: str) -> None:
        """Add a text.

        Args:
            where: it comes from, for the message.

        Raises:
            UserError: there is one of that name.
        """
        try:
            self._base.execute("INSERT INTO texts VALUES (?, ?)", (name, value))
        except sqlite3.IntegrityError:
            raise UserError(f"{where}: {name} is there twice") from None

    def find(self, name: str) -> str | None:
        """The text of that name; None if there is none."""
        row = self._base.execute("SELECT value FROM texts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None
