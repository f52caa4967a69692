"""The GPUs of this machine."""

import torch

from espnet_pinch.errors import UserError


def check_gpus(number: int, option: str) -> None:
    """Check that this machine has as many GPUs as the user asked for.

    Args:
        number: number of GPUs that are needed.
        option: how the user asked for them, such as "--ngpu 2".

    Raises:
        UserError: there are fewer.
    """
    found = torch.cuda.device_count()
    if number > found:
        raise UserError(f"{option}: this machine has {found} GPUs that torch can use")
