"""The processes of a training: which one is the first, and which ways to start them do not work."""

import argparse

from espnet2.train.distributed_utils import get_node_rank, resolve_distributed_mode

from espnet_pinch.errors import UserError
from espnet_pinch.gpus import check_gpus


def is_first(args: argparse.Namespace) -> bool:
    """Whether this process is the first of those that were launched, or the only one.

    A launcher starts one process for each node, or one for each rank.

    Args:
        args: ESPnet's options.

    Raises:
        UserError: the options ask for more GPUs than the machine has, or for several GPUs in one process, or the
            processes were not launched as the options say.
    """
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    mode = argparse.Namespace(**vars(args))
    try:
        resolve_distributed_mode(mode)
        rank = get_node_rank(args.dist_rank, args.dist_launcher) if mode.distributed else None
    except (RuntimeError, ImportError) as error:
        raise UserError(f"cannot tell the processes of this run apart: {error}") from None
    if args.ngpu > 1 and not mode.distributed:
        # DataParallel copies the model at every step, but the method would read the weights of the first copy.
        raise UserError("several GPUs need one process each: give --multiprocessing_distributed true")
    return not rank  # rank is None if there is only one node
