"""Stage 0 of a recipe: fetch an archive, check it, and unpack a folder of it."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.download import fetch, unpack


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fetch_archive", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--sha256", required=True, help="of the archive")
    parser.add_argument("--archive", type=Path, required=True, help="what it is stored as, until it is unpacked")
    parser.add_argument("--inside", required=True, help="folder in the archive")
    parser.add_argument("--out", type=Path, required=True, help="what that folder becomes")
    parser.add_argument("--by_hand", default="", help="what else the user can do, if the network fails")
    args = parser.parse_args()
    if args.out.is_dir():
        return
    try:
        fetch(args.url, args.archive, args.sha256)
    except OSError as error:
        raise OSError(
            f"could not fetch {args.url}: {error}. By hand: put it there as {args.archive}"
            + (f", or {args.by_hand}" if args.by_hand else "")
        ) from None
    unpack(args.archive, args.inside, args.out)
    args.archive.unlink()


if __name__ == "__main__":
    run_main(main)
