"""The processes of a training: who is first among them, and what ESPnet would start in a way that does not work."""

import argparse

from espnet2.train.distributed_utils import get_node_rank, resolve_distributed_mode

from espnet_pinch.errors import UserError
from espnet_pinch.gpus import check_gpus


def is_first(args: argparse.Namespace) -> bool:
    """Whether this process is the only one that was launched, or the first of them: one for every node, or every rank.

    Args:
        args: ESPnet's options.

    Raises:
        ValueError: more GPUs than there are, several GPUs in one process, or not launched as the options say.
    """
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    mode = argparse.Namespace(**vars(args))
    try:
        resolve_distributed_mode(mode)
        rank = get_node_rank(args.dist_rank, args.dist_launcher) if mode.distributed else None
    except (RuntimeError, ImportError) as error:
        raise UserError(f"cannot tell the processes of this run apart: {error}") from None
    if args.ngpu > 1 and not mode.distributed:
        # DataParallel copies the model at every step; the method would go on reading the weights of the first copy.
        raise UserError("several GPUs take a process each: give --multiprocessing_distributed true")
    return not rank  # None where there is but one node
