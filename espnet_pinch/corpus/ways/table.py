"""One table of all utterances: TSV, CSV or JSON lines, in the columns audio, text and, if wanted, more."""

from collections.abc import Iterator
from functools import partial

from espnet_pinch.corpus.columns import KNOWN, NEEDED, Columns
from espnet_pinch.corpus.tables import read_records
from espnet_pinch.corpus.way import Asked, Row, Way, beside, register
from espnet_pinch.errors import UserError


@register
class Table(Way):
    name = "table"
    takes = "FILE"
    summary = f"a table, .tsv, .csv or .jsonl: columns {', '.join(NEEDED)};\nand if wanted {', '.join(KNOWN[2:])}"
    has_columns = True
    patterns = ()
    place = 20

    def rows(self, asked: Asked) -> Iterator[Row]:
        """See the base class. Relative paths are seen from the table's folder."""
        table = asked.source
        if table.is_dir():
            raise UserError(f"--table: {table} is a folder; give the table itself")
        columns: dict[tuple[str, ...], Columns] = {}  # JSON lines may have different names
        for line, values in read_records(table):
            names = tuple(values)
            if names not in columns:
                place = f"{table}, line {line}" if columns else ""
                columns[names] = Columns.find(names, asked, str(table), place=place)
            yield columns[names].row(values, f"{table}, line {line}", partial(beside, table.parent))
