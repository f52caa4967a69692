"""Stage 1 of a corpus that is there already: its audio as the recipe reads it, and a data directory for each set.

Reads what read_corpus has left, with the same options.
"""

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from espnet_pinch.bin import jobs, run_main
from espnet_pinch.corpus.audio import Cut, Made, make_entries, missing
from espnet_pinch.corpus.on_disk import temporary_files_in
from espnet_pinch.corpus.options import add_options, splits_of, way_of
from espnet_pinch.corpus.store import Store
from espnet_pinch.data.kaldi_dir import SOURCES, Utterance, write_sorted
from espnet_pinch.data.problems import Problems


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.cut_corpus", description=__doc__)
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder with rows.sqlite; gets SET/ and audio/")
    parser.add_argument("--nj", type=jobs, default=4, help="threads that convert audio")
    args = parser.parse_args()
    with temporary_files_in(args.out):
        _cut(args)


def _cut(args: argparse.Namespace) -> None:
    (way, source), splits = way_of(args), splits_of(args)
    with contextlib.closing(Store(args.out / "rows.sqlite")) as store:
        sets = splits.resolve(store.splits())
    with contextlib.closing(Store(args.out / "rows.sqlite", sets)) as store:
        problems = Problems(str(source))
        for audio, problem in missing(store.audio(), way):
            problems.add(problem if problems.count else f"{store.place(audio)}: {problem}")
        problems.raise_first()
        base = store.base
        base.execute("ATTACH DATABASE '' AS work")  # a file that SQLite removes
        base.execute(
            "CREATE TABLE work.cuts (audio TEXT, start REAL, stop REAL, channel INTEGER, entry TEXT, samples INTEGER, "
            "PRIMARY KEY (audio, start, stop, channel)) WITHOUT ROWID"
        )
        total, whole = sum(1 for _ in store.cuts()), Made()
        base.execute("BEGIN")
        for made in make_entries((Cut(*row) for row in store.cuts()), args.out / "audio", way, args.nj, total):
            rows = ((*cut, entry, samples) for cut, entry, samples in made.entries)
            base.executemany("INSERT INTO work.cuts VALUES (?, ?, ?, ?, ?, ?)", rows)
            for audio, problem in made.problems:
                problems.add(problem if problems.count else f"{store.place(audio)}: {problem}")
            whole.kept += made.kept
            whole.shortened += made.shortened
            whole.clipped += made.clipped
        problems.raise_first()
        base.execute("COMMIT")
        _say(whole, total, args.out / "audio")
        for gone in {path.parent.name for path in args.out.glob("*/wav.scp")} - sets.keys():
            shutil.rmtree(args.out / gone)
        for name in sets:
            count = write_sorted(args.out / name, _utterances(store, name), SOURCES)
            print(f"{name}: {count:,} utterances", flush=True)


def _utterances(store: Store, name: str) -> Iterator[Utterance]:
    where, values = store.where(name)
    query = (
        "SELECT id, entry, text, speaker, samples FROM rows JOIN work.cuts USING (audio, start, stop, channel) "
        f"WHERE {where} ORDER BY id"
    )
    return (Utterance(*row) for row in store.base.execute(query, values))


def _say(made: Made, total: int, folder: Path) -> None:
    converted = total - made.kept
    print(f"audio: {made.kept:,} files stay where they are", end="")
    print(f", {converted:,} utterances are in {folder}" if converted else "")
    if made.shortened:
        print(f"audio: {made.shortened:,} utterances ended behind their recording (less than 0.5 s): cut at its end")
    if made.clipped:
        print(f"audio: {made.clipped:,} samples were too large for 16 bits: clipped")


if __name__ == "__main__":
    run_main(main)
