"""Families of upstreams. A family holds what this package must know about one kind of transformers' models.

A family is a subclass of ``Family`` in a file of ``espnet_pinch/asr/families``, decorated with ``register``. Code for
one model type belongs there: its names of layers, its fields of a configuration.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espnet_pinch.asr import families as package
from espnet_pinch.asr.macs import count_macs
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.channels import Tied, tied_names
from espnet_pinch.core.settings import shown
from espnet_pinch.core.units import Group, Structure, cut, find_groups
from espnet_pinch.errors import UserError
from espnet_pinch.plugins import import_all

if TYPE_CHECKING:
    from espnet_pinch.asr.vocabulary import Vocabulary

# The field of a configuration with the widths of a model that was cut, ``{group: units left}``.
WIDTHS = "espnet_pinch_widths"


def widths_of(config) -> Mapping[str, int]:
    """The widths that a configuration records besides transformers' own fields; empty where it records none."""
    return getattr(config, WIDTHS, None) or {}


class Family(ABC):
    """Models with the same layers, fields of the configuration and forward pass.

    In all methods ``config`` is a ``transformers.PretrainedConfig`` of the family, and ``model`` is one of its models
    without a head.

    Attributes:
        model_types: the values of ``config.model_type`` that belong to the family.
        layers: regular expression of the names of the gated linear layers; each has a bias.
        short_names: ``{name of a gated layer within its block: short name}``, in the order of the figures.
        head: the attribute that holds the head in transformers' model for CTC.
        may_be_missing: endings of the names of weights that a checkpoint may lack.
        channel: a model takes waveforms as (batch, 1, samples), not as (batch, samples).
        variance_floor: what normalising a waveform adds to its variance.
        always_masks: a model takes an attention mask, whatever its processor says.
        blank_fields: of a configuration, which name the row of CTC's blank.
        vocabulary_file: of a folder, which names the outputs of a head for CTC.
        extractor: transformers' class for what goes before the model.
        processor: its class for that and what goes behind the model.
        has_pipeline: transformers' pipeline for speech recognition takes such a model.
    """

    model_types: tuple[str, ...]
    layers: str
    short_names: Mapping[str, str]
    head: str = "lm_head"
    may_be_missing: tuple[str, ...] = ()
    channel: bool = False
    variance_floor: float = 1e-7
    always_masks: bool = False
    blank_fields: tuple[str, ...] = ("pad_token_id",)
    vocabulary_file: str = "vocab.json"
    extractor: str = "Wav2Vec2FeatureExtractor"
    processor: str = "Wav2Vec2Processor"
    has_pipeline: bool = True

    def encoder_config(self, config):
        """The part of a configuration that has the fields of the Transformer."""
        return config

    @abstractmethod
    def ties(self, config) -> Sequence[Tied]:
        """Groups of gated layers that share channels. A layer in no group cannot be pruned by channels."""

    @abstractmethod
    def filters(self, model: nn.Module, multiple: int) -> Sequence[Group]:
        """The filters of the convolutions that make frames of the waveform.

        Args:
            multiple: of the numbers of filters that are kept.
        """

    def groups(self, model: nn.Module, multiple: int = 1) -> list[Group]:
        """All heads, channels and filters of a model that has no gates."""
        ties = self.ties(model.config)
        linears = tied_names(find_linears(model, self.layers), ties)
        return [*find_groups(model, linears, ties, multiple), *self.filters(model, multiple)]

    def structure(self, model: nn.Module, prefix: str = "") -> Structure:
        """What a method that prunes heads, channels and filters has to know of ``model``.

        Args:
            prefix: of its names in the model that the method is attached to.
        """
        # No functions of their own here: a copy of a method would go on with the model that the original has.
        return Structure(
            ties=self.ties(model.config),
            filters=functools.partial(self._filters_within, prefix, model),
            cut=self.cut,
            macs=functools.partial(self._macs_within, prefix, model),
            stock=not widths_of(model.config),
            record=functools.partial(self._record_within, prefix, model.config),
        )

    def _filters_within(self, prefix: str, model: nn.Module, multiple: int) -> list[Group]:
        return [group.within(prefix) for group in self.filters(model, multiple)]

    def _macs_within(self, prefix: str, model: nn.Module) -> dict[str, float]:
        return {name and prefix + name: count for name, count in count_macs(model, channel=self.channel).items()}

    def _record_within(self, prefix: str, config, widths: Mapping[str, int]) -> None:
        self.record_widths(config, {name.removeprefix(prefix): width for name, width in widths.items()})

    def cut(self, model: nn.Module, group: Group, places: Tensor) -> None:
        """Take the units out of ``model`` that are not in ``places``."""
        cut(model, group, places)
        if group.kind == "heads":
            self.keep_heads(model.get_submodule(group.name.rpartition(".")[0]), places)

    def record_widths(self, config, widths: Mapping[str, int]) -> None:
        """Describe a model that was cut in its configuration: ``{group: units left}``, of what has become smaller.

        Where fields of a stock configuration can say it, transformers alone can load the model.
        """
        before = widths_of(config)
        fields = None if before else self.stock_fields(config, widths)
        if fields is None:
            config.update({WIDTHS: {**before, **widths}})
        else:
            self.encoder_config(config).update(fields)

    def stock_fields(self, config, widths: Mapping[str, int]) -> dict | None:
        """Fields of transformers' configuration that say what ``widths`` says; None where none do."""
        return None

    def narrow(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        """Give a model, of whatever weights, the widths of one that was cut: ``{group: units left}``.

        Raises:
            UserError: a group that the model does not have, or a width that it cannot have.
        """
        if not isinstance(widths, Mapping):
            raise UserError(f"{WIDTHS} must map groups of units to numbers, not be {shown(widths)}")
        groups = {group.name: group for group in self.groups(model)}
        device = next(model.parameters()).device
        for name, width in widths.items():
            if name not in groups or type(width) is not int or not 0 < width <= groups[name].units:
                raise UserError(f"a model that was cut cannot have {shown(width)} units in {shown(name)}")
            self.cut(model, groups[name], torch.arange(width, device=device))

    def keep_heads(self, block: nn.Module, places: Tensor) -> None:  # noqa: B027  (most blocks need not know)
        """Tell the block of an attention whose layers have been cut of the heads that are left.

        Args:
            places: of these heads, (heads,).
        """

    @abstractmethod
    def objection(self, config) -> str | None:
        """What a model has that is not supported, in words that follow "has"; None if all is supported."""

    @abstractmethod
    def frames_of(self, config, samples):
        """The number of frames for ``samples`` (an int or an integer tensor); below 1 for too few samples."""

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
        """Whether the model takes an attention mask, if its processor does not say."""

    @abstractmethod
    def freeze_feature_encoder(self, model: nn.Module) -> None:
        """Freeze the layers that turn the waveform into frames."""

    @abstractmethod
    def hidden_states(self, model: nn.Module, speech: Tensor, mask: Tensor | None, frames: Tensor) -> Tensor:
        """The last hidden states; in training mode, with SpecAugment as configured.

        SpecAugment does not mask a batch that is shorter than one of its masks.

        Args:
            speech: (batch, samples), normalised if the upstream's processor normalises.
            mask: attention mask (batch, samples), 1 for a sample and 0 for padding; None if the model takes none.
            frames: (batch,) number of frames of each utterance.

        Returns: (batch, frames, ``output_size``).
        """

    @abstractmethod
    def leaves_out_parameters(self, config) -> bool:
        """Whether some parameters may get no gradient in a training step."""

    def read_vocabulary(self, folder: Path, config) -> Vocabulary:
        """What a folder says of the outputs of its head for CTC.

        Raises:
            FileNotFoundError: ``vocabulary_file`` is missing.
            UserError: it is damaged, or does not fit the head.
        """
        from espnet_pinch.asr.vocabulary import read_vocab_json

        return read_vocab_json(folder, config)

    def tokenizer(self, folder: Path, tokens: Sequence[str]):
        """transformers' tokenizer of a head for CTC, of whose outputs the first is the blank and the padding.

        Args:
            folder: may get files of the tokenizer, besides those that it saves itself.
            tokens: ESPnet's names of the outputs, "<blank>" first.
        """
        from espnet_pinch.asr.vocabulary import save_vocabulary

        return save_vocabulary(folder, tokens)

    def exporting(self, model: nn.Module) -> AbstractContextManager:
        """Inside the block, ``torch.onnx`` can export ``model``."""
        return nullcontext()


_found: dict[str, Family] = {}  # by model type


def register(family: type[Family]) -> type[Family]:
    """Decorate a subclass of ``Family`` to register it under its ``model_types``."""
    _found.update(dict.fromkeys(family.model_types, family()))
    return family


def all_families() -> dict[str, Family]:
    """``{model type: family}`` of all files of families."""
    import_all(package)
    return dict(_found)


def find_family(model_type: str) -> Family:
    """The family of a model type; raises UserError if there is none."""
    families = all_families()
    if model_type not in families:
        raise UserError(f"a model of type {model_type}; supported: {', '.join(families)}")
    return families[model_type]


def structure_of(model: nn.Module, layers: str) -> Structure:
    """The structure of the model of one of these families that ``model`` is or holds; a plain one without such a model.

    Args:
        layers: pattern of the names of its linear layers.

    Raises:
        UserError: there are several whose layers match.
    """
    families, linears, found = all_families(), find_linears(model, layers), []
    for name, module in model.named_modules():
        if getattr(module, "base_model", None) is module:  # transformers' model without a head
            family = families.get(getattr(getattr(module, "config", None), "model_type", None))
            prefix = name and f"{name}."
            if family is not None and any(linear.startswith(prefix) for linear in linears):
                found.append((family, module, prefix))
    if len(found) > 1:
        names = " and ".join(prefix.rstrip(".") for _, _, prefix in found)
        raise UserError(f"layers of several models match, {names}: whole units are pruned in one; choose it by layers")
    if not found:
        return Structure()
    [(family, module, prefix)] = found
    return family.structure(module, prefix)


def short_names() -> dict[str, str]:
    """The short names of all families."""
    return {name: short for family in all_families().values() for name, short in family.short_names.items()}
