"""Export an experiment in several formats, check each of them, and write a model card."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import all_formats, values_of
from espnet_pinch.gpus import check_gpus


def main() -> None:
    formats = all_formats()
    titles = "; ".join(f"{name}: {fmt.title}" for name, fmt in formats.items())
    defaults = " ".join(name for name, fmt in formats.items() if fmt.default)
    chosen = "; ".join(f"{name}: {' '.join(fmt.default_values)}" for name, fmt in formats.items() if fmt.values)
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.export", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder with folded/")
    parser.add_argument("--out", type=Path, help="folder to write [EXP/export, or EXP/PART/export]")
    parser.add_argument("--part", default="", help="of a run with several targets, the one to export: 0.65")
    parser.add_argument("--formats", nargs="+", choices=formats, default=[], help=f"{titles} [{defaults}]")
    parser.add_argument(
        "--values",
        nargs="+",
        choices=values_of(formats.values()),
        default=[],
        help=f"types that weights are stored as [{chosen}]",
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="data directories to compare the formats on")
    parser.add_argument("--wer", action="store_true", help="score files with rounded weights on all of --data")
    parser.add_argument("--decoded", default="decode_ctc_greedy", help="EXP's transcripts, to compare these WERs with")
    parser.add_argument("--upstream", default="unknown", help="for the card, if the model does not know it")
    parser.add_argument("--corpus", default="unknown", help="its name for the card")
    parser.add_argument("--batch_size", type=int, default=8, help="for --wer")
    parser.add_argument("--ngpu", type=int, default=0, help="for --wer; 0 decodes on the CPU")
    args = parser.parse_args()
    from espnet_pinch.export.write import export

    if args.wer and not args.data:
        raise UserError("--wer needs data directories to decode: give --data")
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    options = {key: value for key, value in vars(args).items() if key not in ("exp", "out", "ngpu")}
    export(args.exp, args.out or args.exp / args.part / "export", device="cuda" if args.ngpu else "cpu", **options)


if __name__ == "__main__":
    run_main(main)
