"""Version 1 of the sparse file, which is read and no longer written.

It differs from version 2 (``espnet_pinch/export/sparse_file.py``) in this: tensors have the names of the model's
``state_dict``; the header also has ``masked``, the shapes of the weights with a mask; masks are not deflated; there are
no codes. The gated weights of an "int8" file, or their kept values, are int8, and ``scales`` are those of their rows.
"""

import torch
from torch import Tensor

from espnet_pinch.core.grids import Codes
from espnet_pinch.errors import UserError
from espnet_pinch.export import encoding

FORMS = ({"dense"}, {"mask", "values"}, {"dense", "scales"}, {"mask", "values", "scales"})


def decode(parts: dict[str, Tensor], like: Tensor) -> Tensor | Codes:
    """As ``encoding.decode``, for parts of one of the ``FORMS``."""
    if "scales" not in parts:
        return encoding.decode(parts, like)
    [main] = parts.keys() - {"mask", "scales"}
    if parts[main].dtype != torch.int8:
        raise UserError(f"is stored as {parts[main].dtype}, not {torch.int8}")
    scales = encoding.checked_scales(parts["scales"], like.shape)
    codes = encoding.decode({name: part.half() if name == main else part for name, part in parts.items()}, like)
    assert isinstance(codes, Tensor)
    return Codes(codes, scales)
