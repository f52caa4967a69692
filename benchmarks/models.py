"""Models with random weights, of real size, for the benchmarks."""

from measure import SIZES
from transformers import Wav2Vec2Config

from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import config_as_dict
from espnet_pinch.core.grids import Grid
from espnet_pinch.core.one_shot import prune_smallest
from espnet_pinch.export.model import UPSTREAM, assemble, gated_layers, weights

TOKENS = ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


def make_model(size: str, sparsity: float = 0.0, **config) -> PruningASRModel:
    """A CTC model with random weights in eval mode, each gated layer pruned by magnitude to the same sparsity."""
    built = {"config": config_as_dict(Wav2Vec2Config(**SIZES[size], **config)), "processing": {}}
    built["config"]["vocab_size"] = len(TOKENS)
    model = assemble(UpstreamFrontend("", built=built), TOKENS, {"method": "dense"}).eval()
    prune(model, sparsity)
    return model


def prune(model: PruningASRModel, sparsity: float) -> None:
    """Set the fraction ``sparsity`` of the weights of every gated layer to 0, the smallest."""
    for layer in gated_layers(model).values():
        prune_smallest(layer.weight, sparsity)


def quantize(model: PruningASRModel, width: int | str) -> None:
    """Quantise a model as training would leave it: gated layers to ``width``, all else that is no vector to 8 bits."""
    gated = {f"{UPSTREAM}{name}.weight" for name in gated_layers(model)}
    for name, weight in weights(model).items():
        if weight.dim() > 1 and len(weight) > 1:
            grid = Grid(width if name in gated else 8)
            grid.fit(weight)
            codes = grid.round(weight)
            weight.copy_(codes.weight())
            model.scales[name] = codes.scales
