"""The GPUs of this machine."""

import torch

from espnet_pinch.errors import UserError


def check_gpus(number: int, option: str) -> None:
    """See that there are as many GPUs as are asked for.

    Args:
        number: GPUs wanted.
        option: how the user asked for them, such as "--ngpu 2".

    Raises:
        ValueError: there are fewer.
    """
    found = torch.cuda.device_count()
    if number > found:
        raise UserError(f"{option}: this machine has {found} GPUs that torch can use")
