"""Stage 1 of egs/librispeech_100: Kaldi data directories of a corpus in LibriSpeech's layout."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.kaldi_dir import write_source_dir
from espnet_pinch.data.librispeech import SUBSETS, find_root, list_subset


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.prepare_librispeech", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of LibriSpeech/SUBSET")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/train_clean_100 and so on, and OUT/dev")
    args = parser.parse_args()
    root = find_root(args.corpus)
    sets = {subset.replace("-", "_"): list_subset(root, subset) for subset in SUBSETS}
    sets["dev"] = sets["dev_clean"] + sets["dev_other"]
    for name, utterances in sets.items():
        write_source_dir(args.out / name, utterances)


if __name__ == "__main__":
    run_main(main)
