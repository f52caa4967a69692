"""Stage 0: download an upstream from the Hugging Face hub, or make a small one. A folder that holds it is kept.

Of a model with adapters for each language, the named one is merged in.
"""

import argparse
import os
import shutil
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.source import MADE_HERE, is_there, parse_source
from espnet_pinch.errors import UserError
from espnet_pinch.files import alone


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fetch_upstream", description=__doc__)
    parser.add_argument(
        "--upstream",
        required=True,
        help=f"hub id (owner/name or owner/name@revision), {' or '.join(MADE_HERE)}; hub id or folder with :LANGUAGE",
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    source = parse_source(args.upstream)
    if source.folder and not source.language:
        raise UserError(f"{source.folder} is a local folder: there is nothing to download")
    out = Path(os.path.realpath(args.out))  # a link to another folder stays a link
    with alone(out, f"another process fetches {source.name}: waiting until it is done"):
        if source.language and source.folder:
            _merge(Path(source.folder), source.language, out)
        elif is_there(source, out):
            print(f"{source.name} is in {args.out}", flush=True)
        elif source.repo:
            from espnet_pinch.data.hub import fetch_from_hub

            if source.language:
                whole = out.with_name(f"{out.name}.whole")  # what the hub has, until it is merged
                fetch_from_hub(source, whole)
                _merge(whole, source.language, out)
                shutil.rmtree(whole)
            else:
                fetch_from_hub(source, out)
        else:
            from espnet_pinch.asr.small_upstreams import make_small_upstream

            make_small_upstream(out, source.name)


def _merge(folder: Path, language: str, out: Path) -> None:
    from espnet_pinch.asr.languages import merge_language

    merge_language(folder, language, out)


if __name__ == "__main__":
    run_main(main)
