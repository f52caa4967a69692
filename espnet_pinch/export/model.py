"""Build a model from its description, which fits into JSON. The weights are the only other thing needed."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.head import ASR, find_head
from espnet_pinch.asr.pruned import UPSTREAM, PrunedModel
from espnet_pinch.asr.upstream import RATES, config_from_dict, fill_buffers, model_from_dict
from espnet_pinch.core.methods.dense import DenseSettings
from espnet_pinch.core.settings import shown
from espnet_pinch.data.subwords import from_text, to_text
from espnet_pinch.data.tokens import is_token_list
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.export.encoding import to_codes

MOST_REPEATS, MOST_CHOICES = 3, 10  # in a pattern of layers; ours have 1 and 5
EXTRA = "_extra_state"  # torch's name in a state_dict for a module's extra state


def assemble(frontend: UpstreamFrontend, tokens: list[str], pruning: Mapping) -> PrunedModel:
    """Build the same model from these parts as ESPnet's task, without its options and its 10 s of imports.

    Args:
        frontend: of the model's task. Its weights may still be missing.
        tokens: names of the head's outputs: ESPnet's of tokens, "<blank>" first; or labels.
        pruning: the block of a folded model's config.yaml, method "dense".
    """
    return frontend.kind.assemble(frontend, tokens, dict(pruning))


def describe(model: PrunedModel) -> dict:
    """The description for ``build``: the upstream's ``config``, its ``processing``, ``tokens``, ``pruning`` block;
    ``task``, but for speech recognition, whose files earlier releases read, too; of a model of subwords also
    ``subwords``, sentencepiece's model in base64."""
    settings = model.pruning.settings
    assert isinstance(settings, DenseSettings)  # it is folded
    built = model.frontend.built
    subwords = {"subwords": to_text(model.subwords)} if model.subwords else {}
    return {
        "config": {key: value for key, value in built["config"].items() if key != "_name_or_path"},
        "processing": built["processing"],
        "tokens": list(model.token_list),
        "pruning": {"method": "dense", "layers": settings.layers, "dense": {"channels": dict(settings.channels)}},
        **({} if model.task == ASR else {"task": model.task}),
        **subwords,
    }


def build(description: Mapping) -> PrunedModel:
    """Build a model on the meta device: names and shapes. ``fill`` gives it weights.

    Raises:
        UserError: the description is not that of a supported model.
    """
    try:
        _check(description)
        tokens, task = description["tokens"], description.get("task", ASR)
        built = {key: description[key] for key in ("config", "processing")}
        with torch.device("meta"):
            upstream = model_from_dict(description["config"])
            frontend = UpstreamFrontend("", built=built, model=upstream, task=task)
            model = assemble(frontend, tokens, description["pruning"])
        model.subwords = from_text(description.get("subwords", ""))
        return model.eval()
    except UserError as error:
        raise UserError(f"cannot build a model from its description: {error}") from None
    except Exception as error:  # transformers raises many types, some messages have several lines
        raise UserError(
            f"cannot build a model from its description: {type(error).__name__}: {one_line(error)}"
        ) from None


def _check(description: Mapping) -> None:
    """Raise UserError if building or running the model would fail late, or never end."""
    processing, tokens = description["processing"], description["tokens"]
    if not is_token_list(tokens):
        raise UserError("tokens that are not a list of names")
    family = find_family(description["config"]["model_type"])
    if objection := family.objection(config_from_dict(description["config"])):
        raise UserError(objection)
    if processing.get("sampling_rate", 16000) not in RATES:
        raise UserError(f"the sampling rate cannot be {shown(processing['sampling_rate'])} Hz")
    for name in ("do_normalize", "return_attention_mask"):
        if not isinstance(processing.get(name, False), bool):
            raise UserError(f"{name} must be true or false, not {shown(processing[name])}")
    find_head(description.get("task", ASR))
    pattern = description["pruning"]["layers"]
    re.compile(pattern)
    if re.search(r"\)[*+{]", pattern):
        raise UserError("the pattern of layers repeats a group, which may take forever to match")
    # What fails to match is tried in every way: names^repeats times 2^choices ways.
    repeats, choices = len(re.findall(r"[*+{]", pattern)), len(re.findall(r"\(|(?<!\()\?", pattern))
    if repeats > MOST_REPEATS or choices > MOST_CHOICES:
        raise UserError(
            f"the pattern of layers has {repeats} repeats and {choices} groups and options, over {MOST_REPEATS} and "
            f"{MOST_CHOICES}: it may take forever to match"
        )


def weights(model: PrunedModel) -> dict[str, torch.Tensor]:
    """The model's ``state_dict`` without entries that are no weights: the progress of a pruning method."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(EXTRA)}


def stock_names(model: PrunedModel) -> dict[str, str]:
    """``{name of a weight: its name in transformers' model for the task}``."""
    prefixes = {
        UPSTREAM: f"{model.frontend.upstream.base_model_prefix}.",
        f"{model.head_name}.": model.kind.stock_prefix(model.frontend.family),
    }
    names = {}
    for name in weights(model):
        [prefix] = filter(name.startswith, prefixes)
        names[name] = f"{prefixes[prefix]}{name.removeprefix(prefix)}"
    return names


def fill(model: PrunedModel, state: Mapping[str, torch.Tensor]) -> PrunedModel:
    """Give a model of ``build`` its weights: all of them, and no others.

    Raises:
        UserError: names or shapes do not fit.
    """
    extra = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(EXTRA)}
    try:
        model.load_state_dict({**extra, **state}, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(one_line(error)) from None
    fill_buffers(model.frontend.upstream)
    return model


def take_scales(model: PrunedModel, scales: Mapping[str, torch.Tensor]) -> None:
    """Tell a model that its weights are whole numbers times these scales.

    Raises:
        UserError: a name or a shape does not fit, a scale is negative or not finite, or they are not that.
    """
    own = weights(model)
    for name, of_rows in scales.items():
        fits = name in own and of_rows.dtype == torch.float32 and of_rows.shape == own[name].shape[:1]
        if not fits or not of_rows.isfinite().all() or not (of_rows >= 0).all():
            raise UserError(f"the scales of {name} do not fit the model")
        try:
            to_codes(own[name], of_rows)
        except UserError as error:
            raise UserError(f"{name} {error}") from None
    model.scales = dict(scales)


def gated_layers(model: PrunedModel) -> dict[str, nn.Linear]:
    """``{name in the upstream: layer}`` of the layers that are or were gated. In a model folded to smaller matrices
    these are the small ones."""
    regex = re.compile(model.pruning.settings.layers)
    return {
        name: module
        for name, module in model.frontend.upstream.named_modules()
        if isinstance(module, nn.Linear) and regex.search(name.removesuffix(".small"))
    }


def count_layers(model: PrunedModel) -> dict[str, dict]:
    """``{layer: {"shape", "weights", "pruned"}}`` of the gated layers. A weight that is zero counts as pruned."""
    return {
        name: {
            "shape": list(layer.weight.shape),
            "weights": layer.weight.numel(),
            "pruned": int((layer.weight == 0).sum()),
        }
        for name, layer in gated_layers(model).items()
    }
