"""Stage 0: fetch an upstream from the hub, or make one of the small ones."""

import argparse
import contextlib
import os
import re
import shutil
from pathlib import Path

from espnet_pinch.asr.small_upstreams import SMALL, make_small_upstream
from espnet_pinch.asr.upstream import check_folder
from espnet_pinch.bin import run_main
from espnet_pinch.data.download import TIMEOUT, sha256_of
from espnet_pinch.files import disk_errors

PATTERNS = ("*.json", "*.txt")


def fetch_from_hub(repo: str, folder: Path) -> None:
    """Download a model's files to ``folder``; interrupted downloads are continued, files put there by hand are kept.

    The files are of one commit. Those that the hub states a SHA-256 of, the weights among them, are checked.

    Raises:
        OSError: the hub cannot be reached or refuses; the message says how to put the files there by hand.
        ValueError: a checksum is wrong; the file is deleted.
    """
    unfinished = folder / ".cache"  # the hub's client keeps its notes there; they go when all files have come
    if folder.is_dir() and not unfinished.exists():
        with contextlib.suppress(FileNotFoundError):
            check_folder(str(folder))
            return
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain HTTP, which continues what was cut
    from huggingface_hub import HfApi, snapshot_download

    try:
        with disk_errors(folder):
            info = HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT)
            names = [file.rfilename for file in info.siblings]
            weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
            snapshot_download(repo, revision=info.sha, local_dir=folder, allow_patterns=[*PATTERNS, weights])
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0]
        raise OSError(
            f"could not fetch {repo} from the Hugging Face hub ({reason}). By hand: put its config.json, "
            f"preprocessor_config.json, vocab.json and model.safetensors (or pytorch_model.bin) into {folder}"
            + (f" and remove {unfinished}" if unfinished.exists() else "")
        ) from None
    for file in info.siblings:
        path = folder / file.rfilename
        if file.lfs and path.is_file() and sha256_of(path) != file.lfs.sha256:
            path.unlink()
            raise ValueError(f"{path} has another SHA-256 than the hub states: deleted, fetch it again")
    check_folder(str(folder))
    shutil.rmtree(unfinished, ignore_errors=True)


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
