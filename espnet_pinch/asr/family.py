"""Families of upstreams: what has to be known of transformers' models of one kind.

A family is a file in ``espnet_pinch/asr/families`` with a subclass of ``Family``; ``register`` makes it known. Nothing
else names model types, layers or fields of a configuration.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from espnet_pinch.asr import families as package
from espnet_pinch.asr.macs import count_macs
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.channels import Tied
from espnet_pinch.core.settings import shown
from espnet_pinch.core.units import Group, Structure, cut, find_groups
from espnet_pinch.errors import UserError
from espnet_pinch.plugins import import_all


class Family(ABC):
    """Models whose layers, configuration and forward pass are alike.

    ``config`` is always a ``transformers.PretrainedConfig`` of the family, ``model`` a model of it without a head.

    Attributes:
        model_types: transformers' names of the models, ``config.model_type``.
        layers: regular expression of the names of the gated linear layers; each has a bias.
        short_names: ``{name of a gated layer within its block: short name}``, in the order of pictures.
        head: attribute of transformers' model for CTC that holds the head.
        may_be_missing: ends of the names of weights that a checkpoint may lack.
    """

    model_types: tuple[str, ...]
    layers: str
    short_names: Mapping[str, str]
    head: str = "lm_head"
    may_be_missing: tuple[str, ...] = ()

    @abstractmethod
    def ties(self, config) -> Sequence[Tied]:
        """The gated layers that share channels; one that is in no group cannot be pruned by channels."""

    @abstractmethod
    def filters(self, model: nn.Module, multiple: int) -> Sequence[Group]:
        """The filters of the convolutions that make frames of the waveform.

        Args:
            multiple: of the numbers of filters that are kept.
        """

    def groups(self, model: nn.Module, multiple: int = 1) -> list[Group]:
        """All heads, channels and filters of a model that has no gates."""
        linears = find_linears(model, self.layers)
        return [*find_groups(model, linears, self.ties(model.config), multiple), *self.filters(model, multiple)]

    def structure(self, model: nn.Module) -> Structure:
        """What a method that prunes heads, channels and filters has to know of ``model``."""
        return Structure(
            ties=self.ties(model.config),
            filters=functools.partial(self.filters, model),
            cut=self.cut,
            macs=functools.partial(count_macs, model),
        )

    def cut(self, model: nn.Module, group: Group, places: Tensor) -> None:
        """Take the units out of ``model`` that are not in ``places``."""
        cut(model, group, places)
        if group.kind == "heads":
            self.keep_heads(model.get_submodule(group.name.rpartition(".")[0]), places)

    def narrow(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        """Give a model, of whatever weights, the widths of one that was cut: ``{group: units left}``.

        Raises:
            UserError: a group that the model does not have, or a width that it cannot have.
        """
        groups = {group.name: group for group in self.groups(model)}
        for name, width in widths.items():
            if name not in groups or not isinstance(width, int) or not 0 < width <= groups[name].units:
                raise UserError(f"a model that was cut cannot have {shown(width)} units in {shown(name)}")
            device = next(model.parameters()).device
            self.cut(model, groups[name], torch.arange(width, device=device))

    def keep_heads(self, block: nn.Module, places: Tensor) -> None:  # noqa: B027  (most blocks need not know)
        """Tell the block of an attention whose layers have been cut of the heads that are left.

        Args:
            places: of these heads, (heads,).
        """

    @abstractmethod
    def objection(self, config) -> str | None:
        """What a model has that is not supported, as "has ..." goes on; None where it has nothing of the kind."""

    @abstractmethod
    def frames_of(self, config, samples):
        """Frames that come out for ``samples``, an int or an integer tensor; under 1 where they are too few."""

    @abstractmethod
    def stride(self, config) -> int:
        """Samples from one frame to the next."""

    @abstractmethod
    def output_size(self, config) -> int:
        """Width of the hidden states."""

    @abstractmethod
    def dropout(self, config) -> float:
        """Dropout between the hidden states and the head."""

    @abstractmethod
    def masks_padding(self, config) -> bool:
        """Whether the model takes an attention mask, where its processor does not say."""

    @abstractmethod
    def freeze_feature_encoder(self, model: nn.Module) -> None:
        """Keep the layers that make frames of the waveform as they are."""

    @abstractmethod
    def hidden_states(self, model: nn.Module, speech: Tensor, mask: Tensor | None, frames: Tensor) -> Tensor:
        """The last hidden states, in training mode with SpecAugment as configured.

        A batch that is too short for a mask is left unmasked.

        Args:
            speech: (batch, samples), as the processor leaves them.
            mask: (batch, samples), 1 for a sample and 0 for padding; None where the model takes no mask.
            frames: (batch,) frames of each utterance.

        Returns: (batch, frames, ``output_size``).
        """

    @abstractmethod
    def leaves_out_parameters(self, config) -> bool:
        """Whether some parameters may get no gradient in a training step."""

    def exporting(self, model: nn.Module) -> AbstractContextManager:
        """Inside, ``model`` is such that ``torch.onnx`` can export it."""
        return nullcontext()


_found: dict[str, Family] = {}  # by model type


def register(family: type[Family]) -> type[Family]:
    """Decorator of a subclass of ``Family``."""
    _found.update(dict.fromkeys(family.model_types, family()))
    return family


def all_families() -> dict[str, Family]:
    """``{model type: family}``, file by file."""
    import_all(package)
    return dict(_found)


def find_family(model_type: str) -> Family:
    """The family of a model type; ValueError where there is none."""
    families = all_families()
    if model_type not in families:
        raise UserError(f"a model of type {model_type}; supported: {', '.join(families)}")
    return families[model_type]


def short_names() -> dict[str, str]:
    """The short names of all families."""
    return {name: short for family in all_families().values() for name, short in family.short_names.items()}
