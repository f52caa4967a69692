"""What decoding asks of a model, whatever computes it: waveforms in, logits out."""

from __future__ import annotations

import abc
import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espnet_pinch.asr.head import ASR, Head, find_head
from espnet_pinch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from espnet_pinch.asr.pruned import PrunedModel

_LONGEST = 1 << 24  # samples; every model makes a frame of less


class Recogniser(abc.ABC):
    """A model that is ready to decode.

    Attributes:
        task: of its head.
        token_list: names of the outputs: ESPnet's of tokens, the blank first; or labels.
        blank_id: index of the blank; -1 of a head that has none.
        subwords: sentencepiece's model, where the tokens are subwords.
        sampling_rate: Hz, of the waveforms.
        samples_per_frame: samples from one frame to the next.
        shortest: samples that make one frame; with fewer there is none.
    """

    task: str = ASR
    token_list: list[str]
    blank_id: int = 0
    subwords: bytes = b""
    sampling_rate: int
    samples_per_frame: int
    shortest: int

    @abc.abstractmethod
    def __call__(self, audio: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Decode one batch.

        Args:
            audio: each (samples,), float32, on the CPU, at least ``shortest``, not normalised.

        Returns: logits, (batch, frames, tokens), float32, and the number of frames of each utterance, (batch,). A
            classifier has one frame: (batch, 1, labels).

        Raises:
            UserError: a logit is not finite.
        """

    @property
    def kind(self) -> Head:
        """What its task is."""
        return find_head(self.task)


class TorchRecogniser(Recogniser):
    """A model in torch.

    Args:
        model: in eval mode, on ``device``, in any floating type.
    """

    def __init__(self, model: PrunedModel, device: str = "cpu"):
        frontend = model.frontend
        config, family = frontend.upstream.config, frontend.family
        self.model, self.device = model, device
        self.task, self.token_list, self.blank_id = model.task, list(model.token_list), model.blank_id
        self.subwords = model.subwords
        self.sampling_rate = frontend.processing.sampling_rate
        self.samples_per_frame = family.stride(config)
        self.shortest = bisect.bisect_left(range(_LONGEST), 1, key=lambda samples: family.frames_of(config, samples))

    def __call__(self, audio: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        import torch  # here: a program that only names the runtimes starts without it
        from torch.nn.utils.rnn import pad_sequence

        with torch.inference_mode():
            lengths = torch.tensor([len(samples) for samples in audio], device=self.device)
            hidden, frames = self.model.encode(pad_sequence(list(audio), batch_first=True).to(self.device), lengths)
            logits, rows = self.kind.apply(self.model.head, hidden, frames)
            return checked(logits.float()), rows


def as_recogniser(model: PrunedModel | Recogniser, device: str = "cpu") -> Recogniser:
    """``model`` itself if it is a recogniser, else a recogniser of it on ``device``."""
    return model if isinstance(model, Recogniser) else TorchRecogniser(model, device)


def checked(logits: Tensor) -> Tensor:
    """``logits``; raises UserError if one is not finite."""
    if not logits.isfinite().all():
        raise UserError("the model's outputs are not finite: its weights are damaged, or too large for its dtype")
    return logits
