"""WavLM: wav2vec2 whose attention has a position bias, with a row for every head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_pinch.asr.families.wav2vec2 import Wav2Vec2
from espnet_pinch.asr.family import register
from espnet_pinch.core.settings import shown
from espnet_pinch.errors import UserError


@register
class WavLM(Wav2Vec2):
    """Models in the shape of transformers' ``WavLMModel``."""

    model_types = ("wavlm",)

    def hidden_states(self, model: nn.Module, speech: Tensor, mask: Tensor | None, frames: Tensor) -> Tensor:
        # transformers reads this field when it masks features, but its own configuration of WavLM lacks it.
        if not hasattr(model.config, "mask_feature_min_masks"):
            model.config.mask_feature_min_masks = 0
        return super().hidden_states(model, speech, mask, frames)

    def keep_heads(self, block: nn.Module, places: Tensor) -> None:
        if isinstance(block.attention, FewerHeads):
            block.attention.keep(places)
        else:
            block.attention = FewerHeads(block.attention, places).train(block.training)


class FewerHeads(nn.Module):
    """WavLM's attention with some of its heads. Its layers have fewer rows and columns already.

    Each head reads its own part of the hidden states to gate the position bias. The first block's bias goes to all
    blocks, so it keeps a row for every head, and each block takes the rows of its own heads.

    Args:
        attention: transformers' ``WavLMAttention``.
        places: of the heads that stay, (heads,).
    """

    places: Tensor

    def __init__(self, attention: nn.Module, places: Tensor):
        super().__init__()
        self.all_heads, self.head_dim, self.dropout = attention.num_heads, attention.head_dim, attention.dropout
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj
        self.gru_rel_pos_const = nn.Parameter(attention.gru_rel_pos_const[:, places])  # (1, heads, 1, 1)
        self.gru_rel_pos_linear = attention.gru_rel_pos_linear
        # As floats: ESPnet's mean of checkpoints adds whole numbers up and does not divide them.
        self.register_buffer("places", places.float())
        if hasattr(attention, "rel_attn_embed"):
            self.rel_attn_embed = attention.rel_attn_embed
            self._bias = [attention]  # in a list: it makes the bias and is no part of this module

    def _load_from_state_dict(self, state_dict, prefix, *more) -> None:
        """As ``nn.Module`` does; raises UserError where the places are none of heads, which rise."""
        super()._load_from_state_dict(state_dict, prefix, *more)
        places = self.places.tolist()
        if places != sorted({*places} & {*range(self.all_heads)}):
            raise UserError(f"{prefix}places: not the places of some of {self.all_heads} heads: {shown(places)}")

    @torch.no_grad()
    def keep(self, places: Tensor) -> None:
        """Keep those of its heads alone that are at ``places``."""
        self.gru_rel_pos_const = nn.Parameter(self.gru_rel_pos_const[:, places])
        self.places = self.places[places]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_,
    ) -> tuple[Tensor, None, Tensor]:
        """
        Args:
            hidden_states: (batch, frames, hidden)
            attention_mask: (batch, frames), 1 for a frame and 0 for padding.
            position_bias: (batch * all heads, frames, frames), what the first block has returned.

        Returns: hidden states, None in place of the attention weights, the position bias.
        """
        batch, frames, _ = hidden_states.shape
        places = self.places.long()
        if position_bias is None:
            bias = self._bias[0].compute_bias(frames, frames)  # (all heads, frames, frames)
            position_bias = bias.repeat(batch, 1, 1)
        bias = position_bias.view(batch, self.all_heads, frames, frames)[:, places]
        parts = hidden_states.view(batch, frames, self.all_heads, self.head_dim)[:, :, places].transpose(1, 2)
        gates = self.gru_rel_pos_linear(parts).view(*parts.shape[:-1], 2, 4).sum(-1).sigmoid()  # (B, heads, T, 2)
        one, other = gates.chunk(2, dim=-1)
        bias = (one * (other * self.gru_rel_pos_const - 1.0) + 2.0) * bias
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], -torch.inf)
        query, key, value = (
            layer(hidden_states).view(batch, frames, -1, self.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout)
        # Concatenated: torch.onnx takes a reshape for a view, which the layout of what it computes does not allow.
        return self.out_proj(torch.cat(mixed.unbind(1), dim=-1)), None, position_bias
