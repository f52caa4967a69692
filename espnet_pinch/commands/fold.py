"""``espnet-pinch fold``: a trained run at any sparsity."""

import argparse
from pathlib import Path

from espnet_pinch.commands.shared import quiet
from espnet_pinch.errors import UserError

ABOUT = """The model of a trained run at another sparsity, without more training. Between two trained targets the
thresholds are interpolated; outside of them one common factor scales those of the nearest. It ends on the target as a
training does: single weights within 0.05 point, whole units so near that no further one fits. With
--max_wer_increase, the word error rate on SET is compared with that of the lowest trained target. With --bits, the
weights are rounded, of a run of any method; better is a training with bits (run.sh --bits). "python -m
espnet_pinch.bin.export --exp FOLDER" makes small files of the folder that is written."""
FOLDS = "folds"  # in a run's folder: its own folded/ is written anew with the run


def add(commands) -> None:
    command = commands.add_parser("fold", help="a trained run at any sparsity", description=ABOUT)
    command.set_defaults(run=fold)
    command.add_argument(
        "experiment", type=Path, metavar="EXPERIMENT", help="folder of a run of pinch: exp/.../asr_..."
    )
    wanted = command.add_mutually_exclusive_group()
    wanted.add_argument("--sparsity", type=float, help="the target: 0.7; of a run with target_macs, of multiplications")
    wanted.add_argument(
        "--max_wer_increase",
        type=float,
        metavar="POINTS",
        help="search the highest target within this on SET",
    )
    command.add_argument("--data", type=Path, metavar="SET", help="of the search: a data directory with a text")
    command.add_argument("--bits", help="round the weights that have gates: 8, 4, 3, 2, ternary")
    command.add_argument("--others", type=int, help="with --bits, bits of the other weights: 8, 16 or 32 [8]")
    command.add_argument("--out", type=Path, help="folder to write [EXPERIMENT/folds/TARGET, with the bits' name]")


def fold(args: argparse.Namespace) -> None:
    """Fold a trained run at a target that it may not have been trained for.

    Args:
        args: ``experiment``; ``sparsity``, or ``max_wer_increase`` and ``data``; ``bits`` and ``others``; ``out``.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.export.any_target.Trained``; or there is something at ``out``.
    """
    if (args.max_wer_increase is None) != (args.data is None):
        raise UserError("--max_wer_increase and --data SET go together")
    if args.others is not None and args.bits is None:
        raise UserError("--others goes with --bits")
    block = None
    if args.bits is not None:
        block = {"bits": int(args.bits) if args.bits.isdecimal() else args.bits}
        block |= {} if args.others is None else {"others": args.others}
    with quiet() as say:
        from espnet_pinch.export.any_target import Trained

        trained = Trained(args.experiment, say=say, quantize=block)
    target = args.sparsity
    if args.max_wer_increase is not None:
        target = trained.sparsest(args.max_wer_increase, args.data)
    elif target is None:
        if not block or len(trained.targets) > 1:
            raise UserError("give --sparsity, --max_wer_increase with --data, or, for a run with one target, --bits")
        target = next(iter(trained.targets), None)
    names = [f"{target}"] if target is not None else []
    names += [trained.bits.name] if trained.bits else []
    out = args.out or args.experiment / FOLDS / "_".join(names)
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or give another --out")
    with quiet():
        counts = trained.fold(target, out)
    share = f"{100 * counts.sparsity:.2f} % pruned"
    if counts.macs and counts.macs_total and counts.macs < counts.macs_total:
        share += f", {100 * (1 - counts.macs / counts.macs_total):.2f} % of the multiplications saved"
    print(f"{out}: {counts.params_kept:,} of {counts.params_total:,} parameters kept, {share}")
