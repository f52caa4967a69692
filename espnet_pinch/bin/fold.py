"""Fold an experiment's best checkpoint, or an untrained upstream, into plain weights with zeros."""

import argparse
from pathlib import Path

from espnet_pinch.asr.checkpoint import write_folded
from espnet_pinch.asr.task import task_of_options
from espnet_pinch.asr.upstream import read_config, require_head
from espnet_pinch.bin import run_main
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.export.any_target import Trained


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fold", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder; writes its folded/")
    parser.add_argument("--checkpoint", help="file name in EXP [the mean of the best epochs]")
    parser.add_argument(
        "--untrained", nargs=argparse.REMAINDER, help="fold an untrained model, built from these options of asr_train"
    )
    args = parser.parse_args()
    if args.untrained is not None:
        task = task_of_options(args.untrained)
        config = task.get_parser().parse_args([*args.untrained, "--output_dir", str(args.exp)])
        task.check_settings(config)
        upstream = config.frontend_conf["upstream"]
        require_head(upstream, read_config(upstream), task.task)  # a baseline with a new head would output random words
        model = task.build_model(config).eval()
        for key in ("config", "required", "print_config"):  # ESPnet leaves these out of config.yaml, or they do not fit
            vars(config).pop(key, None)
        report(args.exp / "folded", write_folded(model, config, args.exp / "folded"))
        return
    trained = Trained(args.exp, args.checkpoint)
    for target in trained.targets or (None,):
        folder = args.exp / "folded" / str(target) if len(trained.targets) > 1 else args.exp / "folded"
        report(folder, trained.fold(target, folder))


def report(folder: Path, counts: Parameters) -> None:
    print(
        f"{folder}: {counts.params_kept:,} of {counts.params_total:,} parameters kept, "
        f"sparsity {100 * counts.sparsity:.2f} % ({counts.pruned:,} of {counts.gated:,} gated weights)"
    )


if __name__ == "__main__":
    run_main(main)
