"""Heads. A head makes the outputs of a model out of the upstream's hidden states, and so says what its task is.

A head is a subclass of ``Head`` in a file of ``espnet_pinch/asr/heads``, decorated with ``register``. Everything that
depends on the task belongs there or is asked there: gates, methods, training, folding and files are the same for all.
Importing such a file must be cheap: it imports torch, ESPnet and transformers only when it uses them.
"""

from __future__ import annotations

import dataclasses
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from espnet_pinch.asr import heads as package
from espnet_pinch.errors import UserError
from espnet_pinch.plugins import in_order

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from espnet_pinch.asr.family import Family
    from espnet_pinch.asr.frontend import UpstreamFrontend
    from espnet_pinch.asr.pruned import PrunedModel
    from espnet_pinch.asr.recogniser import Recogniser
    from espnet_pinch.asr.search import Search
    from espnet_pinch.asr.upstream import WaveformProcessing
    from espnet_pinch.transcript.words import Transcript

ASR, CLASSIFY = "asr", "classify"


@dataclasses.dataclass(frozen=True)
class Rate:
    """An error rate that is counted in validation.

    Attributes:
        title: for lines and pictures.
        errors, of: names of the figures, means per utterance, whose ratio it is.
    """

    title: str
    errors: str
    of: str


# Added to the error rate of an epoch that ends below the target sparsity, so that such an epoch is never the best. An
# error rate is a fraction: few exceed 1, none exceeds 100.
SHORT_OF_TARGET = 100.0


def on_target(rate: str) -> str:
    """The name of the figure that is an error rate, and ``SHORT_OF_TARGET`` more where an epoch ends below a target."""
    return f"{rate}_on_target"


class Head(ABC):
    """What is particular to the models of one task.

    In all methods ``names`` are those of the outputs, in order: tokens or labels.

    Attributes:
        name: of the task, in ``--task``, config.yaml and descriptions of models.
        place: position among the heads.
        what: a model of this task is called, without an article.
        command: of espnet-pinch that takes such a model.
        outputs: what its outputs are called.
        rates: ``{name of a figure: rate}``; checkpoints are chosen by the first one.
        loss: name of the figure in the training log.
        loss_title: for pictures.
        architecture: the end of the names of transformers' classes for the task.
        auto: transformers' class that finds them.
        processor: transformers' class for what goes before the model.
        hub_task: the Hugging Face hub's name of the task.
        kind: of the head, as in "a CTC head".
        card: what the model card calls the model.
    """

    name: ClassVar[str]
    place: ClassVar[int] = 100
    what: ClassVar[str]
    command: ClassVar[str]
    outputs: ClassVar[str]
    rates: ClassVar[Mapping[str, Rate]]
    loss: ClassVar[str]
    loss_title: ClassVar[str]
    architecture: ClassVar[str]
    auto: ClassVar[str]
    processor: ClassVar[str]
    hub_task: ClassVar[str]
    kind: ClassVar[str]
    card: ClassVar[str]

    @property
    def rate(self) -> str:
        """The name of the error rate that checkpoints are chosen by."""
        return next(iter(self.rates))

    @abstractmethod
    def assemble(self, frontend: UpstreamFrontend, names: list[str], pruning: dict) -> PrunedModel:
        """A model of these parts, with a new head.

        Args:
            pruning: the ``pruning:`` block.
        """

    @abstractmethod
    def apply(self, module: nn.Module, hidden: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of a head.

        Args:
            module: the head.
            hidden: (batch, frames, width).
            frames: (batch,) number of frames of each utterance.

        Returns: logits (batch, rows, outputs), and the number of rows of each utterance (batch,).
        """

    @abstractmethod
    def stock_prefix(self, family: Family) -> str:
        """The prefix of the head's weights in transformers' model."""

    @abstractmethod
    def is_in(self, upstream: str, config: PretrainedConfig) -> bool:
        """Whether a checkpoint has such a head."""

    @abstractmethod
    def check(self, upstream: str, config: PretrainedConfig) -> None:
        """Raise UserError if the head of a checkpoint cannot be used."""

    @abstractmethod
    def take(
        self, upstream: str, config: PretrainedConfig, whole: PreTrainedModel
    ) -> tuple[nn.Module, list[str] | None]:
        """The head of a checkpoint, its outputs in the order of the names; None for names that it does not say.

        Args:
            whole: transformers' model of the checkpoint.
        """

    @abstractmethod
    def save(
        self,
        folder: Path,
        model: PreTrainedModel,
        module: nn.Module,
        names: list[str],
        processing: WaveformProcessing,
    ) -> None:
        """Write a Hugging Face folder that ``load_upstream`` and ``self.auto`` read.

        Args:
            folder: created if it does not exist.
            model: the Transformer with folded gates.
            module: the head.
            processing: written to preprocessor_config.json.
        """

    @abstractmethod
    def said(self, output) -> str:
        """What transformers' pipeline for the task has said, out of its output."""

    @abstractmethod
    def text(self, logits: Tensor, names: Sequence[str], blank: int) -> str:
        """What logits of one utterance, (rows, outputs), say.

        Args:
            blank: index of the blank, of a head that has one.
        """

    @abstractmethod
    def transcripts(
        self, recogniser: Recogniser, audio: Sequence[Tensor], search: Search | None, names: Sequence[str]
    ) -> list[Transcript]:
        """What a model says of one batch; ``names`` are those of the recordings here."""


_found: dict[str, Head] = {}


def register(build: type[Head]) -> type[Head]:
    """Decorate a subclass of ``Head`` to register it under its ``name``."""
    _found[build.name] = build()
    return build


def all_heads() -> dict[str, Head]:
    """``{task: head}``, sorted by ``place``."""
    return in_order(package, _found)


def find_head(task: str) -> Head:
    """The head of a task; raises UserError if there is none."""
    heads = all_heads()
    if not isinstance(task, str) or task not in heads:
        raise UserError(f"unknown task {reprlib.repr(task)}; there is: {', '.join(heads)}")
    return heads[task]


def require_task(task: str, model: Recogniser | PrunedModel, where: str) -> None:
    """Raise UserError if a model is of another task.

    Args:
        where: it is from.
    """
    if model.task != task:
        raise UserError(
            f"{where} is of the task {model.task} ({model.kind.what}), and this is for the task {task} "
            f"({find_head(task).what}): espnet-pinch {model.kind.command} takes it"
        )
