"""Load a trained model, and write it folded (plain weights with zeros) for ESPnet and for transformers."""

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from espnet_pinch.asr.macs import count_macs
from espnet_pinch.asr.pruned import UPSTREAM, PrunedModel
from espnet_pinch.asr.safe_load import load_weights
from espnet_pinch.asr.task import task_of
from espnet_pinch.asr.upstream import model_from_dict
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.channels import compact
from espnet_pinch.core.parameters import LayerCount, Parameters
from espnet_pinch.data import subwords
from espnet_pinch.data.source import write_record
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.files import whole_folder, write_json

SCALES = "scales.safetensors"  # in the folder of a folded model that is quantised: {weight: its scales}


def load_model(config_file: str | os.PathLike, model_file: str | os.PathLike) -> tuple[PrunedModel, argparse.Namespace]:
    """The model of a checkpoint with its gates, on the CPU in eval mode, and its configuration.

    Use ``espnet_pinch.load`` for folded models; it needs no training options. ESPnet's own loader accepts missing and
    unexpected tensors; these two functions refuse them.

    Args:
        config_file: config.yaml of the training.
        model_file: weights that ``torch.save`` has written, such as 3epoch.pth.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: the checkpoint is damaged, or does not fit the configuration.
    """
    with open(config_file, encoding="utf-8") as file:
        args = argparse.Namespace(**yaml.safe_load(file))
    state = load_weights(model_file)
    model = task_of(args).new_model(args)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"{model_file} does not fit {config_file}: {one_line(error)}") from None
    model.subwords = subwords.read(Path(config_file).parent)
    return model.eval(), args


def count_parameters(model: PrunedModel, layers: str, extra: int) -> Parameters:
    """Count the parameters of a folded model. A gated weight that is zero counts as pruned.

    Args:
        model: folded, or never gated.
        layers: regular expression of the names of the gated layers.
        extra: parameters that the method has trained besides the model's own.
    """
    per_layer = {
        name: LayerCount(linear.weight.numel(), int((linear.weight == 0).sum()))
        for name, linear in find_linears(model.frontend.upstream, layers).items()
    }
    total = sum(p.numel() for p in model.parameters())
    kept = total - sum(layer.pruned for layer in per_layer.values())
    return _parameters(per_layer, total, kept, extra, stored=total)


def count_cut(model: PrunedModel, layers: Mapping[str, tuple[float, int]], total: int, extra: int) -> Parameters:
    """Count the parameters of a model that was cut to smaller layers.

    Args:
        model: cut.
        layers: ``{layer: (pruned weights, weights)}``, from before.
        total: parameters of the model before.
        extra: as for ``count_parameters``.
    """
    per_layer = {name: LayerCount(weights, int(pruned)) for name, (pruned, weights) in layers.items()}
    kept = sum(p.numel() for p in model.parameters())
    return _parameters(per_layer, total, kept, extra, stored=kept)


def _parameters(layers: dict[str, LayerCount], total: int, kept: int, extra: int, stored: int) -> Parameters:
    gated = sum(layer.weights for layer in layers.values())
    pruned = sum(layer.pruned for layer in layers.values())
    return Parameters(pruned / gated, gated, pruned, total, kept, layers, extra, stored)


def write_folded(model: PrunedModel, args: argparse.Namespace, folder: str | os.PathLike) -> Parameters:
    """Fold the gates of ``model`` into zeros and write it. ``folder`` appears only when it is complete.

    ``config.yaml`` and ``model.pth`` are for ESPnet (``Speech2Text``), ``hf/`` is a Hugging Face folder. If NAS-CP has
    removed whole channels, ``model.pth`` has smaller matrices without them. ``hf/`` keeps them as zeros, because
    transformers has no heads of unequal width. If whole heads, channels or filters were cut, both have the smaller
    layers, and the configuration in ``hf/`` says how wide they are: this program reads it, transformers alone does not.

    The weights of a quantised model have the values that they are stored as; ``scales.safetensors`` has the scales.
    Of a model of subwords, both have ``bpe.model``.

    Returns: the content of ``parameters.json``: what ``count_parameters`` returns, ``extra_trained_parameters`` (those
        of the method) and ``params_stored`` (parameters in ``model.pth``).
    """
    layers, ties = model.pruning.settings.layers, model.pruning.structure.ties
    extra = sum(p.numel() for p in model.new_parameters())
    structured = model.pruning.structured
    model.land()  # the mean of several checkpoints may have another sparsity than the target
    channel = model.frontend.family.channel
    with torch.device("meta"):
        macs_total = count_macs(model_from_dict(model.frontend.built["config"]), channel=channel)[""]
    before, total = model.pruning.layer_counts(), sum(p.numel() for p in model.parameters()) - extra
    groups = model.pruning.group_widths()
    widths = model.fold()
    counts = count_cut(model, before, total, extra) if widths else count_parameters(model, layers, extra)
    pruning = {"method": "dense", "layers": layers}
    frontend = model.frontend
    with whole_folder(folder) as new:
        model.kind.save(new / "hf", frontend.upstream, model.head, model.token_list, frontend.processing)
        if any((frontend.source or {}).values()):
            write_record(new / "hf", frontend.source)
        if structured:
            kept = compact(frontend.upstream, counts.layers, ties)
            pruning["dense"] = {"channels": {name: len(places) for name, places in kept.items()}}
            model.scales = _scales_of_kept(model, kept)
        if model.scales:
            save_file({name: scales.contiguous() for name, scales in model.scales.items()}, new / SCALES)
            (new / SCALES).chmod(0o644)
        counts = dataclasses.replace(
            counts,
            params_stored=sum(p.numel() for p in model.parameters()),
            macs=count_macs(frontend.upstream, channel=channel)[""],
            macs_total=macs_total,
            widths=groups,
        )
        torch.save(model.state_dict(), new / "model.pth")
        write_json(new / "parameters.json", dataclasses.asdict(counts))
        of_training = ("distill", "quantize")
        model_conf = {key: value for key, value in args.model_conf.items() if key not in of_training}
        config = {**vars(args), "pruning": pruning, "model_conf": {**model_conf, "pruning": pruning}}
        config.update(dict.fromkeys(of_training, {}))
        config["frontend_conf"] = {**args.frontend_conf, "built": frontend.built}  # with the widths of a cut model
        if model.subwords:
            for place in (new, new / "hf"):
                (place / subwords.FILE).write_bytes(model.subwords)
            config["bpemodel"] = str(Path(folder).absolute() / subwords.FILE)
        with open(new / "config.yaml", "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    return counts


def _scales_of_kept(model: PrunedModel, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scales of a model that ``compact`` has made smaller.

    Args:
        kept: what it has returned.
    """
    scales = dict(model.scales)
    weights = model.state_dict()
    for layer, places in kept.items():
        old = f"{UPSTREAM}{layer}.weight"
        if old in scales:
            new = old if old in weights else f"{UPSTREAM}{layer}.small.weight"
            of_layer = scales.pop(old)
            scales[new] = of_layer if len(of_layer) == len(weights[new]) else of_layer[places]
    return scales
