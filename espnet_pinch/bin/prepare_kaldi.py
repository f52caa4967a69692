"""Stage 1 of a recipe whose corpus is Kaldi data directories: copy what the recipe reads of them."""

import argparse
import shutil
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.kaldi_dir import read_source_dir, write_source_dir
from espnet_pinch.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.prepare_kaldi", description=__doc__)
    parser.add_argument("--kaldi", type=Path, required=True, help="folder of the data directories")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/SET for each; removes sets that are gone")
    args = parser.parse_args()
    sets = sorted(path.parent for path in args.kaldi.glob("*/wav.scp"))
    if not sets:
        raise UserError(f"{args.kaldi} has no data directories: no SET/wav.scp")
    rows = {folder.name: read_source_dir(folder) for folder in sets}  # all are read before any is written
    for gone in {path.parent.name for path in args.out.glob("*/wav.scp")} - rows.keys():
        shutil.rmtree(args.out / gone)
    for name, utterances in rows.items():
        write_source_dir(args.out / name, utterances)
        print(f"{name}: {len(utterances)} utterances", flush=True)


if __name__ == "__main__":
    run_main(main)
