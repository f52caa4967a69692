"""Stage 0: fetch an upstream from the hub, or make one of the small ones."""

import argparse
import re
from pathlib import Path

from espnet_pinch.asr.small_upstreams import SMALL, make_small_upstream
from espnet_pinch.asr.upstream import check_folder
from espnet_pinch.bin import run_main

PATTERNS = ("*.json", "*.txt")


def fetch_from_hub(repo: str, folder: Path) -> None:
    """Download a model's files to ``folder``; interrupted downloads are continued, files put there by hand are kept.

    Raises:
        OSError: the hub cannot be reached or refuses; the message says how to put the files there by hand.
    """
    try:
        check_folder(str(folder))
        if folder.is_dir():
            return
    except FileNotFoundError:
        pass
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = HfApi().list_repo_files(repo)
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
        snapshot_download(repo, local_dir=folder, allow_patterns=[*PATTERNS, weights])
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0]
        raise OSError(
            f"could not fetch {repo} from the Hugging Face hub ({reason}). By hand: put its config.json, "
            f"preprocessor_config.json, vocab.json and model.safetensors (or pytorch_model.bin) into {folder}"
        ) from None
    check_folder(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fetch_upstream", description=__doc__)
    parser.add_argument("--upstream", required=True, help='hub id ("owner/name"), "mini" or "micro"')
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.upstream in SMALL:
        make_small_upstream(args.out, args.upstream)
    else:
        fetch_from_hub(args.upstream, args.out)


if __name__ == "__main__":
    run_main(main)
