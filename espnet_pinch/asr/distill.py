"""Distillation: the posteriors of the model that a run starts from, as a second target of its training.

All structured pruning of speech models that the field reports uses some form of it. Here it is the plainest one: the
Kullback-Leibler divergence of the CTC posteriors, frame by frame, from one more forward pass without gradients.
"""

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.core.settings import check_keys, check_number
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """A YAML's ``distill:`` block.

    Attributes:
        weight: of the divergence in the loss, beside the CTC loss; over 0.
        temperature: both posteriors are those of logits over it; over 0.
    """

    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        check_number("distill.weight", self.weight, above=0.0)
        check_number("distill.temperature", self.temperature, above=0.0)

    @classmethod
    def of(cls, block) -> "DistillSettings | None":
        """The settings of a block; None where there is none.

        Raises:
            UserError: it has an unknown setting, or one out of its range.
        """
        if not block:
            return None
        check_keys(block, {field.name for field in dataclasses.fields(cls)}, "the distill block")
        return cls(**block)


class Teacher:
    """A copy of the model as it is before anything is pruned. It is no part of the model that is trained.

    Args:
        frontend: with the checkpoint's head.
        settings: the ``distill:`` block.

    Raises:
        UserError: the upstream has no CTC head to learn from.
    """

    def __init__(self, frontend: UpstreamFrontend, settings: DistillSettings):
        if not frontend.has_head:
            raise UserError("distill: the upstream has no CTC head to learn from; train its baseline first")
        self.settings = settings
        self.frontend = copy.deepcopy(frontend).eval().requires_grad_(False)
        self.head: nn.Linear | None = None

    def take_head(self, head: nn.Linear) -> None:
        """Copy the head that the training starts from."""
        self.frontend.take_head()
        self.head = copy.deepcopy(head).requires_grad_(False)

    def loss(self, speech: Tensor, lengths: Tensor, logits: Tensor, frames: Tensor) -> Tensor:
        """The divergence of the student's posteriors from the teacher's, summed over frames, mean over utterances.

        That is the scale of ESPnet's CTC loss. With the temperature's square the gradients keep their size.

        Args:
            speech: (batch, samples), zero-padded.
            lengths: (batch,) samples of each utterance.
            logits: (batch, frames, tokens) of the student.
            frames: (batch,) frames of each utterance.
        """
        assert self.head is not None
        temperature = self.settings.temperature
        with torch.no_grad():
            self.frontend.to(speech.device)
            hidden, _ = self.frontend(speech, lengths)
            wanted = F.log_softmax(self.head.to(speech.device)(hidden).float() / temperature, dim=-1)
        own = F.log_softmax(logits.float() / temperature, dim=-1)
        divergence = F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)  # (batch, frames)
        valid = torch.arange(divergence.shape[1], device=frames.device) < frames[:, None]
        return torch.where(valid, divergence, 0.0).sum() / len(speech) * temperature**2
