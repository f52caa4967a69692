"""Stage 1 of a corpus that is there already: read what it says of its utterances, and check that. Opens no audio."""

import argparse
import contextlib
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.corpus.on_disk import temporary_files_in
from espnet_pinch.corpus.options import add_options, columns_of, splits_of, way_of
from espnet_pinch.corpus.splits import Take
from espnet_pinch.corpus.store import Counts, Store, write_rows
from espnet_pinch.corpus.way import Asked
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_file
from espnet_pinch.progress import progress_bar


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.read_corpus", description=__doc__)
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.sqlite, and sources: its sound files")
    args = parser.parse_args()
    with temporary_files_in(args.out):
        _read(args)


def _read(args: argparse.Namespace) -> None:
    (way, source), splits, columns = way_of(args), splits_of(args), columns_of(args)
    if columns and not way.has_columns:
        raise UserError(f"--columns: what --{way.name} reads has no columns to name")
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            print(line, flush=True)

    passed_by: list[str] = []

    def wants(split: str) -> bool:
        if splits.wants(split):
            return True
        passed_by.append(split)
        return False

    with whole_file(args.out / "rows.sqlite") as path:
        rows = way.rows(Asked(source, columns, wants, say))
        rows = progress_bar(rows, desc=f"reading {source.name}", unit="utts")
        try:
            counts = write_rows(path, rows, str(source), args.split_by)
        except UserError as error:
            unread = passed_by and "no utterance" in str(error)
            hint = f" for the sets {', '.join(splits.sets)}; it has the splits {', '.join(passed_by)}: give --splits"
            raise UserError(f"{error}{hint if unread else ''}") from None
        with contextlib.closing(Store(path)) as store:
            sets = splits.resolve(store.splits(), passed_by)
        with contextlib.closing(Store(path, sets)) as store:
            store.require_ids()
            _say_sets(store, sets, counts, passed_by, bool(args.splits))
            with whole_file(args.out / "sources") as new, open(new, "w", encoding="utf-8") as file:
                last = ""
                for audio in store.audio():
                    name = way.file_of(audio)
                    if name != last:
                        file.write(f"{name}\n")
                    last = name


def _say_sets(store: Store, sets: dict[str, list[Take]], counts: Counts, passed_by: list[str], told: bool) -> None:
    """Print what each set has got, and what is left over.

    Args:
        told: whether the user has said which splits, and shares of them, the sets take.

    Raises:
        UserError: a set has got nothing.
    """
    made = any(take.high <= 1 for takes in sets.values() for take in takes)
    sizes = {name: store.count(name) for name in sets}
    for name, (rows, speakers) in sizes.items():
        print(f"{name}: {rows:,} utterances, {speakers:,} speakers")
    train, *others = sizes
    for other in others:
        speakers, files = store.shared(train, other)
        if speakers or files:
            print(f"{train} and {other} have {speakers:,} speakers and {files:,} sound files in common")
    for line in counts.said("speaker" if made else ""):
        print(line)
    for split, rows in store.unused().items():
        print(f"left out: {rows:,} utterances of the split {split or 'without a name'}, which no set takes")
    if passed_by:
        print(f"left out, not read: the splits {', '.join(passed_by)}, which no set takes")
    empty = [name for name, (rows, _) in sizes.items() if not rows]
    if empty:
        raise_ = "it in --splits" if told else "--dev_share and --test_share"
        why = (
            f": the corpus has {store.speakers():,} speakers, and the share of {empty[0]} holds none of them. Raise "
            f"{raise_}, or give --split_by utterance"
            if made
            else ""
        )
        raise UserError(f"the set {empty[0]} is empty{why}")


if __name__ == "__main__":
    run_main(main)
