"""Build a model from its description: plain types that fit into JSON, and need no other file but the weights."""

import re
from collections.abc import Mapping

import torch
from espnet2.asr.ctc import CTC
from torch import nn
from transformers import AutoConfig

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import RATES, fill_buffers
from espnet_pinch.core.methods.dense import DenseSettings
from espnet_pinch.errors import UserError, one_line

UPSTREAM = "frontend.upstream."  # what names in a model have before those of transformers
EXTRA = "_extra_state"  # torch's name in a state_dict for what a module keeps besides tensors


def assemble(frontend: UpstreamFrontend, tokens: list[str], pruning: Mapping) -> PruningASRModel:
    """The model that ESPnet's task builds of these parts, without its options and its 10 s of imports.

    Args:
        frontend: with or without the weights it is to have.
        tokens: ESPnet's names of the head's outputs, "<blank>" first.
        pruning: the block of a folded model's config.yaml, method "dense".
    """
    unused = ("specaug", "normalize", "preencoder", "encoder", "postencoder", "decoder", "joint_network")
    ctc = CTC(len(tokens), frontend.output_size())
    return PruningASRModel(
        dict(pruning), vocab_size=len(tokens), token_list=tokens, frontend=frontend, ctc=ctc, **dict.fromkeys(unused)
    )


def describe(model: PruningASRModel) -> dict:
    """What ``build`` takes: the upstream's ``config``, its ``processing``, ``tokens`` and the ``pruning`` block."""
    settings = model.pruning.settings
    assert isinstance(settings, DenseSettings)  # it is folded
    built = model.frontend.built
    return {
        "config": {key: value for key, value in built["config"].items() if key != "_name_or_path"},
        "processing": built["processing"],
        "tokens": list(model.token_list),
        "pruning": {"method": "dense", "layers": settings.layers, "dense": {"channels": dict(settings.channels)}},
    }


def build(description: Mapping) -> PruningASRModel:
    """The model on the meta device: names and shapes, for ``load_state_dict(..., assign=True)`` to give it weights.

    Raises:
        ValueError: the description is of no model that is supported.
    """
    try:
        _check(description)
        with torch.device("meta"):
            frontend = UpstreamFrontend("", built={key: description[key] for key in ("config", "processing")})
            return assemble(frontend, list(description["tokens"]), description["pruning"]).eval()
    except UserError as error:
        raise UserError(f"its description builds no model: {error}") from None
    except Exception as error:  # transformers raises many kinds, some of several lines
        raise UserError(f"its description builds no model: {type(error).__name__}: {one_line(error)}") from None


def _check(description: Mapping) -> None:
    """Raises where building or running the model would fail late, or never end."""
    processing = description["processing"]
    family = find_family(description["config"]["model_type"])
    if objection := family.objection(AutoConfig.for_model(**description["config"])):
        raise UserError(objection)
    if processing.get("sampling_rate", 16000) not in RATES:
        raise UserError(f"a sampling rate of {processing['sampling_rate']!r} Hz")
    re.compile(description["pruning"]["layers"])
    if re.search(r"\)[*+{]", description["pruning"]["layers"]):
        raise UserError("a pattern of layers that repeats a group, which may take forever to match")


def weights(model: PruningASRModel) -> dict[str, torch.Tensor]:
    """The model's ``state_dict`` without what is no weight: how far a pruning method had come."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(EXTRA)}


def fill(model: PruningASRModel, state: Mapping[str, torch.Tensor]) -> PruningASRModel:
    """Give a model of ``build`` its weights, every one of them and no other.

    Raises:
        ValueError: names or shapes do not fit.
    """
    extra = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(EXTRA)}
    try:
        model.load_state_dict({**extra, **state}, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(one_line(error)) from None
    fill_buffers(model.frontend.upstream)
    return model


def gated_layers(model: PruningASRModel) -> dict[str, nn.Linear]:
    """``{name in the upstream: layer}`` of the layers that are, or were, behind gates; in a model folded to smaller
    matrices, the small ones."""
    regex = re.compile(model.pruning.settings.layers)
    return {
        name: module
        for name, module in model.frontend.upstream.named_modules()
        if isinstance(module, nn.Linear) and regex.search(name.removesuffix(".small"))
    }


def count_layers(model: PruningASRModel) -> dict[str, dict]:
    """``{layer: {"shape", "weights", "pruned"}}`` of the gated layers, zeros counted in the weights themselves."""
    return {
        name: {
            "shape": list(layer.weight.shape),
            "weights": layer.weight.numel(),
            "pruned": int((layer.weight == 0).sum()),
        }
        for name, layer in gated_layers(model).items()
    }
