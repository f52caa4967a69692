"""wav2vec2-conformer: wav2vec2 with Conformer blocks of eight gated linear layers.

The convolutions of a block are not gated. The projection of relative positions has no bias and is not gated either.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from espnet_pinch.asr.families.wav2vec2 import Wav2Vec2
from espnet_pinch.asr.family import register
from espnet_pinch.core.channels import Tied

ATTENTION = Tied(("linear_q", "linear_k", "linear_v"), "linear_out", head_size="head_size")
FEED_FORWARD = Tied(("intermediate_dense",), "output_dense")
MOST_POSITIONS = 100_000  # rows of a table in the model; 50 positions are one second


@register
class Wav2Vec2Conformer(Wav2Vec2):
    """Models built like transformers' ``Wav2Vec2ConformerModel``."""

    model_types = ("wav2vec2-conformer",)
    layers = (
        r"(^|\.)encoder\.layers\.\d+\."
        r"(self_attn\.linear_(q|k|v|out)|ffn[12]\.(intermediate_dense|output_dense))$"
    )
    networks = (".ffn1", ".ffn2")
    short_names = {
        "ffn1.intermediate_dense": "ffn1 fc1",
        "ffn1.output_dense": "ffn1 fc2",
        "self_attn.linear_q": "q",
        "self_attn.linear_k": "k",
        "self_attn.linear_v": "v",
        "self_attn.linear_out": "out",
        "ffn2.intermediate_dense": "ffn2 fc1",
        "ffn2.output_dense": "ffn2 fc2",
    }

    def objection(self, config) -> str | None:
        if config.max_source_positions > MOST_POSITIONS:
            return f"{config.max_source_positions} positions (max_source_positions)"
        return super().objection(config)

    def ties(self, config) -> Sequence[Tied]:
        # With relative positions a learned vector is added to q, and q is multiplied with an embedding. So a channel of
        # q still counts where that of k is 0, and the other way round.
        relative = config.position_embeddings_type == "relative"
        return (FEED_FORWARD,) if relative else (ATTENTION, FEED_FORWARD)

    @contextmanager
    def exporting(self, model: nn.Module) -> Iterator[None]:
        # Relative positions are a bias of torch's fused attention, which torch.onnx cannot export for every length.
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        _forget_positions(model)
        try:
            yield
        finally:
            model.set_attn_implementation(before)
            _forget_positions(model)


def _forget_positions(model: nn.Module) -> None:
    """Clear the cached rotary positions of the last utterance: an export would use them for every length."""
    for module in model.modules():
        if hasattr(module, "cached_sequence_length"):
            module.cached_sequence_length = module.cached_rotary_positional_embedding = None
