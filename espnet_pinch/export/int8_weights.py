"""The weights of a model as whole numbers of 8 bits, with a scale for each output channel."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.core.grids import Codes, Grid
from espnet_pinch.export.model import weights


class Int8Weight(NamedTuple):
    """A weight.

    Attributes:
        codes: (out, ...) int8, from -127 to 127.
        scales: (out,) float32, above 0; a code times the scale of its row is the weight.
    """

    codes: ndarray
    scales: ndarray


class Int8Weights:
    """The weights of a model, by their values, as an exported graph has other names for them."""

    def __init__(self, model: PruningASRModel):
        state = weights(model)
        self._known = {_key(state[name].numpy()): scales for name, scales in model.scales.items()}
        self._grid = Grid(8)

    def of(self, weight: ndarray) -> Int8Weight:
        """A weight, (out, ...) float32: exactly, if the model is quantised to these values, otherwise rounded."""
        tensor = torch.from_numpy(np.array(weight))
        scales = self._known.get(_key(weight)) if self._known else None
        if scales is None:
            codes, scales = self._grid.round(tensor)
        else:
            column = scales.view(-1, *[1] * (tensor.dim() - 1))
            codes = (tensor / torch.where(column > 0, column, 1)).round()
            assert torch.equal(Codes(codes, scales).weight(), tensor) and codes.abs().max() <= 127
        whole = codes.numpy().astype(np.int8)
        # The fewer levels a grid has, the larger are their codes. Of one level it is 127, and processors without VNNI
        # add two products in 16 bits, where codes that large overflow. So what codes have in common goes to the scale.
        common = max(1, int(np.gcd.reduce(np.abs(whole), axis=None)))
        divided = scales.numpy() * np.float32(common)
        return Int8Weight(whole // common, np.where(divided > 0, divided, np.float32(1)))


def _key(weight: ndarray) -> tuple:
    return weight.shape, hashlib.sha256(np.ascontiguousarray(weight).tobytes()).digest()
