"""Score an experiment beside its baseline; write RESULTS.md, results.json and pictures."""

import argparse
from pathlib import Path

import torch

from espnet_pinch.asr.history import device_name
from espnet_pinch.asr.macs import SECONDS
from espnet_pinch.asr.recogniser import TorchRecogniser
from espnet_pinch.bin import run_main
from espnet_pinch.export.load import load
from espnet_pinch.export.sparse_file import exact_bytes
from espnet_pinch.inference.timing import seconds
from espnet_pinch.results.experiment import Experiment, significance_table, table, write_report
from espnet_pinch.results.unit import AUTO, CER, WER


def measure(folders: list[Path]) -> list[dict]:
    """Of folded models, ``forward_seconds`` on the CPU, on noise, ``forward_device``, that CPU, and ``file_bytes``."""
    models = [load(folder) for folder in folders]
    recognisers = [TorchRecogniser(model) for model in models]
    speech = torch.randn(SECONDS * recognisers[0].sampling_rate, generator=torch.Generator().manual_seed(0))
    times = seconds(recognisers, [speech], repeats=5)
    return [
        {"forward_seconds": taken, "forward_device": device_name(), "file_bytes": exact_bytes(model)}
        for taken, model in zip(times, models)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.score", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder, decoded")
    parser.add_argument("--baseline", type=Path, required=True, help="the baseline's folder, decoded")
    parser.add_argument("--out", type=Path, help="folder of the report; the experiment's where not given")
    parser.add_argument("--decoded", default="decode_ctc_greedy", help="name of the decoding folder in both")
    parser.add_argument("--part", default="", help="of a run with several targets, the one to score: 0.65")
    parser.add_argument("--references", type=Path, required=True, help="dump folder that holds SET/text")
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--corpus", default="", help="its name, for the report")
    parser.add_argument("--command", default="", help="the command line to state in the report")
    parser.add_argument("--error_rate", default=AUTO, help=f"which comes first: {WER}, {CER}, or {AUTO} by the script")
    args = parser.parse_args()
    run, baseline = (
        Experiment(folder, args.decoded, args.references, tuple(args.sets), part)
        for folder, part in ((args.exp, args.part), (args.baseline, ""))
    )
    results = write_report(
        args.out or args.exp / args.part,
        run,
        baseline,
        args.upstream,
        args.corpus,
        args.command,
        measure,
        args.error_rate,
    )
    print("\n".join([*table(results), *significance_table(results)]))


if __name__ == "__main__":
    run_main(main)
