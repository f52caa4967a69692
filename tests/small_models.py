"""Small random models for tests."""

import itertools

import torch
from transformers import Wav2Vec2Config

from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import config_as_dict
from espnet_pinch.core.grids import Grid
from espnet_pinch.export.check import noise
from espnet_pinch.export.model import UPSTREAM, assemble, gated_layers, weights

TOKENS = ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *"EATOIN"]
Q_PROJ = "frontend.upstream.encoder.layers.0.attention.q_proj.weight"
FILLED = "wav2vec2.encoder.layers.0.attention.k_proj.weight"  # without zeros, in a sparse file
BITS = {8: 8, 4: 4, 3: 3, 2: 2, "ternary": 1}
AUDIO = noise(2)


def make_model(
    config: dict,
    mask: bool = True,
    sparsity: float = 0.85,
    odd: bool = True,
    config_class=Wav2Vec2Config,
    tokens=TOKENS,
) -> PruningASRModel:
    """A random model, every gated layer pruned by magnitude; where ``odd``, one has no zeros and one nothing else."""
    built = {
        "config": config_as_dict(config_class(**{**config, "vocab_size": len(tokens)})),
        "processing": {"sampling_rate": 16000, "do_normalize": True, "return_attention_mask": mask},
    }
    model = assemble(UpstreamFrontend("", built=built), tokens, {"method": "dense"}).eval()
    with torch.no_grad():
        for layer in gated_layers(model).values():
            size = layer.weight.abs().flatten()
            layer.weight[layer.weight.abs() <= size.kthvalue(int(sparsity * len(size))).values] = 0
        if odd:
            first, second, *_ = gated_layers(model).values()
            first.weight.normal_()
            second.weight.zero_()
    return model


def quantize(model: PruningASRModel, *widths: int | str) -> None:
    """Quantise as training would: gated layers to these widths in turn, the rest to 8 bits, one layer not at all."""
    gated, widths = {f"{UPSTREAM}{name}.weight" for name in gated_layers(model)}, itertools.cycle(widths)
    for name, weight in weights(model).items():
        if weight.dim() > 1 and len(weight) > 1 and "conv_layers.0" not in name:
            grid = Grid(next(widths) if name in gated else 8)
            grid.fit(weight)
            codes = grid.round(weight)
            weight.copy_(codes.weight())
            model.scales[name] = codes.scales


def states_equal(one: PruningASRModel, other: PruningASRModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
