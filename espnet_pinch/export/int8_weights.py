"""The weights of a model as whole numbers of 8 bits, with a scale for each output channel.

x86 processors without VNNI add two products of 8-bit numbers in 16 bits, where large ones overflow. With codes up to
``NO_OVERFLOW``, 7 bits, no sum does. So weights are rounded to these. It adds a fifth to the error of the logits;
overflows would add five times that error. The weights of a model that was quantised in training keep their values.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.core.grids import Codes
from espnet_pinch.export.encoding import to_codes
from espnet_pinch.export.model import weights

NO_OVERFLOW = 63  # two products with unsigned numbers, 2 * 255 * 63, fit into 16 bits with a sign


class Int8Weight(NamedTuple):
    """A weight.

    Attributes:
        codes: (out, ...) int8, from -127 to 127.
        scales: (out,) float32, above 0; a code times the scale of its row is the weight.
    """

    codes: ndarray
    scales: ndarray


class Int8Weights:
    """The weights of a model, by their values, as an exported graph has other names for them.

    Attributes:
        largest: the largest code of those that ``of`` has returned.
    """

    def __init__(self, model: PrunedModel):
        state = weights(model)
        self._known = {_key(state[name].numpy()): scales for name, scales in model.scales.items()}
        self.largest = 0

    def of(self, weight: ndarray) -> Int8Weight:
        """A weight, (out, ...) float32: exactly, if the model is quantised to these values, otherwise rounded."""
        tensor = torch.from_numpy(np.array(weight))
        scales = self._known.get(_key(weight)) if self._known else None
        if scales is None:
            codes, scales = _round(tensor)
        else:
            codes = to_codes(tensor, scales).codes
        whole = codes.numpy().astype(np.int8)
        # A grid of one level has codes of 127. What all codes have in common goes to the scale, so that they are small.
        common = max(1, int(np.gcd.reduce(np.abs(whole), axis=None)))
        divided = scales.numpy() * np.float32(common)
        whole = whole // common
        self.largest = max(self.largest, int(np.abs(whole).max(initial=0)))
        return Int8Weight(whole, np.where(divided > 0, divided, np.float32(1)))


def _round(weight: Tensor) -> Codes:
    """The nearest codes. Other than in ``Grid``, small weights may become 0: here, zeros save nothing."""
    rows = weight.flatten(1)
    scales = rows.abs().amax(1) / NO_OVERFLOW
    codes = (rows / torch.where(scales > 0, scales, 1)[:, None]).round().clamp(-NO_OVERFLOW, NO_OVERFLOW)
    return Codes(codes.view_as(weight), scales)


def _key(weight: ndarray) -> tuple:
    return weight.shape, hashlib.sha256(np.ascontiguousarray(weight).tobytes()).digest()
