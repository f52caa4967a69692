"""Decode data directories with a folded model by batched CTC search: greedy, or a beam with an n-gram model."""

import argparse
from pathlib import Path

from espnet_pinch.asr.decode import decode_data_dir
from espnet_pinch.asr.search_options import add_search_options, make_search
from espnet_pinch.bin import run_main
from espnet_pinch.export.format import loadable
from espnet_pinch.export.load import load
from espnet_pinch.gpus import check_gpus


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.asr_decode", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help=loadable())
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data directories")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/NAME/text for each data directory NAME")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--ngpu", type=int, default=0, help="0 decodes on the CPU")
    add_search_options(parser)
    args = parser.parse_args()
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    device = "cuda" if args.ngpu else "cpu"
    model = load(args.model)
    model.to(device)
    search, about = make_search(args, model.token_list, model.blank_id)
    for data in args.data:
        figures = decode_data_dir(model, data, args.out / data.name, args.batch_size, device, search, **about)
        print(f"{data.name}: {figures['audio_seconds']:.0f} s of audio in {figures['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    run_main(main)
