"""Distillation: the posteriors of a better model as a second target of the training.

All structured pruning of speech models that the field reports uses some form of it. Here it is the plainest one: the
Kullback-Leibler divergence of the posteriors, frame by frame, from one more forward pass without gradients. Those of a
classifier have one frame.

The teacher is the model that the run starts from. Where a run has several targets, it may be the model itself at the
densest of them, as in arXiv 2406.10160, where the largest system of a shared model teaches the smaller ones.
"""

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.settings import check_keys, check_number, shown
from espnet_pinch.errors import UserError

TEACHERS = ("start", "densest")


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """A YAML's ``distill:`` block.

    Attributes:
        weight: of the divergence in the loss, beside that of the task; over 0.
        temperature: both posteriors are those of logits over it; over 0.
        teacher: "start", the model that the run starts from; or "densest", the model at the lowest of several targets.
    """

    weight: float = 1.0
    temperature: float = 1.0
    teacher: str = "start"

    def __post_init__(self):
        check_number("distill.weight", self.weight, above=0.0)
        check_number("distill.temperature", self.temperature, above=0.0)
        if self.teacher not in TEACHERS:
            raise UserError(f"distill.teacher must be {' or '.join(TEACHERS)}, not {shown(self.teacher)}")

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
    """

    def __init__(self, frontend: UpstreamFrontend):
        self.frontend = copy.deepcopy(frontend).eval().requires_grad_(False)
        self.head: nn.Module | None = None

    def take_head(self, head: nn.Module) -> None:
        """Copy the head that the training starts from.

        Raises:
            UserError: the upstream has no head to learn from.
        """
        if not self.frontend.has_head:
            raise UserError(
                f"distill: the upstream has no {self.frontend.kind.kind} head to learn from; train its baseline first"
            )
        self.frontend.take_head()
        self.head = copy.deepcopy(head).requires_grad_(False)

    @torch.no_grad()
    def logits(self, speech: Tensor, lengths: Tensor) -> Tensor:
        """Of the model that the training starts from, (batch, rows, outputs).

        Args:
            speech: (batch, samples), zero-padded.
            lengths: (batch,) samples of each utterance.
        """
        assert self.head is not None
        hidden, frames = self.frontend.to(speech.device)(speech, lengths)
        return self.frontend.kind.apply(self.head.to(speech.device), hidden, frames)[0]


@torch.no_grad()
def densest_logits(
    frontend: UpstreamFrontend, head: nn.Module, pruning: PruningMethod, speech: Tensor, lengths: Tensor
) -> Tensor | None:
    """Of a model in training at its lowest target, (batch, rows, outputs); None while the step trains that target.

    Args:
        frontend: with gates.
        pruning: the method that they are of.
        speech, lengths: as for ``Teacher.logits``.
    """
    in_use = pruning.target_in_use
    if in_use == pruning.targets[0]:
        return None
    pruning.use(pruning.targets[0])
    frontend.eval()
    hidden, frames = frontend(speech, lengths)
    frontend.train()
    pruning.use(in_use)
    return frontend.kind.apply(head, hidden, frames)[0]


def divergence(logits: Tensor, wanted: Tensor, frames: Tensor, temperature: float) -> Tensor:
    """The divergence of the student's posteriors from the teacher's, summed over frames, mean over utterances.

    That is the scale of ESPnet's CTC loss, and of a classifier's cross-entropy. With the temperature's square the
    gradients keep their size.

    Args:
        logits, wanted: (batch, frames, outputs) of the student and of the teacher.
        frames: (batch,) frames of each utterance.
    """
    own, aim = (F.log_softmax(values.float() / temperature, dim=-1) for values in (logits, wanted))
    apart = F.kl_div(own, aim, reduction="none", log_target=True).sum(-1)  # (batch, frames)
    valid = torch.arange(apart.shape[1], device=frames.device) < frames[:, None]
    return torch.where(valid, apart, 0.0).sum() / len(logits) * temperature**2
