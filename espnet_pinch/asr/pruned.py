"""What models of all tasks have in common: an upstream with a pruning method in it, quantisation, a teacher."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn

from espnet_pinch.asr.distill import DistillSettings, Teacher, densest_logits, divergence
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.head import Head, find_head
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.mixed_bits import build_quantization
from espnet_pinch.core.quantize import Quantization, round_others
from espnet_pinch.core.registry import build_method
from espnet_pinch.errors import UserError

UPSTREAM = "frontend.upstream."  # prefix of transformers' names in the names of a model


class PrunedModel(nn.Module):
    """An ``UpstreamFrontend`` and a head. The pruning method gates linear layers of the upstream.

    A subclass is also an ESPnet model. It has the loss of its task, counts its errors, and calls ``begin`` once its
    frontend is there.

    In training the penalty is added to the loss. In validation it is not. Instead the errors of the greedy outputs are
    counted as means per utterance, from which ``PruningTrainer`` computes the error rates of the corpus.

    Attributes:
        task: of its head.
        head_name: the head's name in the model.
        token_list: names of its outputs.
        blank_id: index of the blank; -1 of a head that has none.
        subwords: sentencepiece's model, where the tokens are subwords.
    """

    task: ClassVar[str]
    head_name: ClassVar[str]
    frontend: UpstreamFrontend
    token_list: list[str]
    blank_id: int
    subwords: bytes = b""
    encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # a method of all subclasses

    def begin(self, pruning: dict, distill: dict | None, quantize: dict | None) -> None:
        """Attach the methods.

        Args:
            pruning: a YAML's ``pruning:`` block, see ``build_method``. It may name the gated layers; otherwise the
                upstream's family does.
            distill: a YAML's ``distill:`` block, see ``DistillSettings``; of no effect on a model that is not trained.
            quantize: a YAML's ``quantize:`` block, see ``QuantizeSettings``.

        Raises:
            UserError: a block has an unknown setting, or one out of its range, or they do not fit each other.
        """
        family, upstream = self.frontend.family, self.frontend.upstream
        self.distill = DistillSettings.of(distill)
        taught = self.distill and self.distill.teacher == "start" and self.frontend.is_loaded
        # In a list: the teacher is no part of the model. Before the gates, as some methods prune at once.
        self._teacher = [Teacher(self.frontend)] if taught else []
        self.pruning: PruningMethod = build_method({"layers": family.layers, **pruning})
        if self.distill and self.distill.teacher == "densest" and len(self.pruning.targets) < 2:
            raise UserError("distill.teacher: densest needs several targets, such as target_sparsity: [0.5, 0.65]")
        self.quantization: Quantization | None = None
        self._gated = list(find_linears(upstream, self.pruning.settings.layers))
        self.pruning.attach(upstream, structure=family.structure(upstream))
        self.quantize(quantize)
        # {weight in the state_dict: its scales, (rows,)} of a quantised model: such a weight is whole numbers from -127
        # to 127 times the scale of its row (espnet_pinch.core.grids).
        self.scales: dict[str, Tensor] = {}
        self._errors: dict[str, float] = {}
        self._encoded: tuple[Tensor, Tensor]  # of the forward pass under way: hidden states, frames

    @property
    def kind(self) -> Head:
        """What its task is."""
        return find_head(self.task)

    @property
    def head(self) -> nn.Module:
        """What makes the outputs of the hidden states, for ``Head.apply``."""
        return self.get_submodule(self.head_name)

    def task_loss(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **kwargs
    ) -> tuple[Tensor, dict[str, Any], Tensor]:
        """The task's own loss, figures for the log, and the batch size.

        It sets ``_encoded``, and in validation ``_errors``. The arguments are those of ``forward``.
        """
        raise NotImplementedError

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **kwargs
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss with the penalty, or the counted errors.

        Args:
            speech: (batch, samples), zero-padded.
            speech_lengths: (batch,) number of samples of each utterance.
            text: (batch, tokens) token indices, padded with -1; or (batch, 1) indices of labels.
            text_lengths: (batch,) number of tokens of each utterance.
            kwargs: of ESPnet's model.

        Returns: the loss, figures for the log, and the batch size.
        """
        penalty = self._penalty() if self.training else 0.0
        loss, stats, weight = self.task_loss(speech, speech_lengths, text, text_lengths, **kwargs)
        if self.training and self.distill:
            wanted = self._wanted(speech[:, : speech_lengths.max()], speech_lengths)
            if wanted is not None:
                logits, rows = self.kind.apply(self.head, *self._encoded)
                distance = divergence(logits, wanted, rows, self.distill.temperature)
                loss = loss + self.distill.weight * distance
                stats["loss_distill"] = distance.detach()
        if self.training:
            loss = loss + penalty
            stats.update(self.scalars(), penalty=float(penalty), loss=loss.detach())
        else:
            stats.update(self._errors)
        return force_gatherable((loss, stats, weight), loss.device)

    def _wanted(self, speech: Tensor, lengths: Tensor) -> Tensor | None:
        """The teacher's logits, (batch, rows, outputs); None in a step without a teacher."""
        for teacher in self._teacher:
            return teacher.logits(speech, lengths)
        if self.distill and self.distill.teacher == "densest":
            return densest_logits(self.frontend, self.head, self.pruning, speech, lengths)
        return None

    def begin_distilling(self) -> None:
        """Called once the head is the one that the training starts from."""
        for teacher in self._teacher:
            teacher.take_head(self.head)

    def _penalty(self) -> Tensor | float:
        return self.pruning.penalty() + (self.quantization.penalty() if self.quantization else 0.0)

    def quantize(self, block: dict | None) -> None:
        """Compute with rounded weights from now on.

        Args:
            block: a YAML's ``quantize:`` block; None or empty changes nothing.

        Raises:
            UserError: as ``build_quantization``.
        """
        self.quantization = build_quantization(block)
        if self.quantization:
            self.quantization.attach(self.frontend.upstream, self._gated, self.pruning)

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained besides the model's own."""
        return [*self.pruning.new_parameters(), *(self.quantization.new_parameters() if self.quantization else [])]

    def parameter_groups(self, lr: float, **options) -> list[dict]:
        """As ``PruningMethod.parameter_groups``, with what chooses the bits."""
        groups = self.pruning.parameter_groups(lr, self, **options)
        return self.quantization.parameter_groups(groups) if self.quantization else groups

    def scalars(self) -> dict[str, float]:
        """Figures for the training log."""
        return {**self.pruning.scalars(), **(self.quantization.scalars() if self.quantization else {})}

    def on_target(self) -> bool:
        """Whether the model has the sparsity, and its layers the bits, that they should have at the end."""
        return self.pruning.on_target() and (not self.quantization or self.quantization.settled())

    def land(self) -> None:
        """Bring a trained model exactly to its targets: averaging checkpoints may have moved it away."""
        self.pruning.land()
        if self.quantization:
            self.quantization.land()

    @torch.no_grad()
    def fold(self) -> dict[str, int]:
        """Replace the gates by plain layers, with zeros in their weights or smaller. The method becomes "dense".

        If the model is quantised, all of its weights but vectors get the values that they are to be stored as.

        Returns: ``{group: units left}`` of what has become smaller.
        """
        quantization, self.quantization = self.quantization, None
        if quantization:
            quantization.unwrap()
        widths = self.pruning.fold()
        self.pruning = build_method({"method": "dense", "layers": self.pruning.settings.layers})
        if quantization:
            self.scales = {f"{UPSTREAM}{name}": scales for name, scales in quantization.round().items()}
            others = {name: weight for name, weight in self.named_parameters() if name not in self.scales}
            self.scales.update(round_others(others, quantization.settings.others))
        return widths
