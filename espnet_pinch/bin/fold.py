"""Fold an experiment's best checkpoint, or an untrained upstream, into plain weights with zeros."""

import argparse
import copy
from pathlib import Path

import yaml

from espnet_pinch.asr.checkpoint import load_model, write_folded
from espnet_pinch.asr.resume import average_again, owned
from espnet_pinch.asr.safe_load import damage
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.asr.upstream import read_config, require_ctc_head
from espnet_pinch.bin import run_main


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fold", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder; writes its folded/")
    parser.add_argument("--checkpoint", default="valid.wer_on_target.ave.pth", help="file name in EXP")
    parser.add_argument(
        "--untrained", nargs=argparse.REMAINDER, help="fold an untrained model, built from these options of asr_train"
    )
    args = parser.parse_args()
    if args.untrained is not None:
        config = PruningASRTask.get_parser().parse_args([*args.untrained, "--output_dir", str(args.exp)])
        upstream = config.frontend_conf["upstream"]
        require_ctc_head(upstream, read_config(upstream))  # a baseline with a new head would output random words
        model = PruningASRTask.build_model(config).eval()
        for key in ("config", "required", "print_config"):  # ESPnet leaves these out of config.yaml, or they do not fit
            vars(config).pop(key, None)
    else:
        checkpoint = args.exp / args.checkpoint
        if ".ave" in args.checkpoint and (not checkpoint.exists() or damage(checkpoint)):
            print(f"warning: {checkpoint} is missing or damaged: written again from the best epochs", flush=True)
            with open(args.exp / "config.yaml", encoding="utf-8") as file:
                trained = yaml.safe_load(file)
            with owned(args.exp):
                average_again(args.exp, trained["best_model_criterion"], trained["keep_nbest_models"])
        model, config = load_model(args.exp / "config.yaml", checkpoint)
    targets = model.pruning.targets
    model.pruning.land()  # all of several targets; folding is of one
    for target in targets:
        folder = args.exp / "folded" / str(target) if len(targets) > 1 else args.exp / "folded"
        one = copy.deepcopy(model) if len(targets) > 1 else model
        one.pruning.use(target)
        counts = write_folded(one, config, folder)
        print(
            f"{folder}: {counts.params_kept:,} of {counts.params_total:,} parameters kept, "
            f"sparsity {100 * counts.sparsity:.2f} % ({counts.pruned:,} of {counts.gated:,} gated weights)"
        )


if __name__ == "__main__":
    run_main(main)
