"""wav2vec2 and similar models: convolutions on the waveform, then Transformer blocks of six linear layers."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_pinch.asr.family import Family, register
from espnet_pinch.core.attach import TRANSFORMER_LINEARS
from espnet_pinch.core.channels import TRANSFORMER_TIES, Tied
from espnet_pinch.core.units import Group, Part

MOST_LAYERS = 1000  # no model has more, and building them would take minutes
MOST_WIDTH = 1_000_000  # transformers makes one vector that long in memory, even on the meta device


@register
class Wav2Vec2(Family):
    """Models built like transformers' ``Wav2Vec2Model``."""

    model_types = ("wav2vec2", "hubert", "data2vec-audio", "unispeech", "unispeech-sat")
    layers = TRANSFORMER_LINEARS
    convolutions: str = "feature_extractor.conv_layers"
    projection: str = "feature_projection"
    networks: tuple[str, ...] = (".feed_forward",)  # ends of the names of a block's feed-forward networks
    short_names = {
        "attention.q_proj": "q",
        "attention.k_proj": "k",
        "attention.v_proj": "v",
        "attention.out_proj": "out",
        "feed_forward.intermediate_dense": "fc1",
        "feed_forward.output_dense": "fc2",
    }
    # A learned vector that only SpecAugment's masking uses; some published checkpoints were saved without it.
    may_be_missing = ("masked_spec_embed",)

    def ties(self, config) -> Sequence[Tied]:
        return TRANSFORMER_TIES

    def filters(self, model: nn.Module, multiple: int) -> list[Group]:
        convs = [f"{self.convolutions}.{i}" for i, _ in enumerate(model.get_submodule(self.convolutions).children())]
        projection = model.get_submodule(self.projection)
        groups = []
        for name, after in zip(convs, [*(f"{next_}.conv" for next_ in convs[1:]), f"{self.projection}.projection"]):
            block = model.get_submodule(name)
            norm = [f"{name}.layer_norm"] if hasattr(block, "layer_norm") else []
            own = isinstance(getattr(block, "layer_norm", None), nn.GroupNorm)
            over = [] if own else norm
            if name == convs[-1] and hasattr(projection, "layer_norm"):
                over = [*over, f"{self.projection}.layer_norm"]
            groups.append(
                Group(
                    name,
                    "filters",
                    block.conv.out_channels,
                    (Part(f"{name}.conv", 0), Part(after, 1)),
                    norms=tuple(over),
                    channel_norms=tuple(norm) if own else (),
                    multiple=multiple,
                )
            )
        return groups

    def stock_fields(self, config, widths: Mapping[str, int]) -> dict | None:
        config = self.encoder_config(config)
        conv_dim, networks = list(config.conv_dim), {}
        for name, width in widths.items():
            if found := re.fullmatch(rf"{re.escape(self.convolutions)}\.(\d+)", name):
                conv_dim[int(found[1])] = width
            elif name.endswith(self.networks):
                networks[name] = width
            else:
                return None  # heads: all attentions have as many
        if not networks:
            return {"conv_dim": conv_dim}
        if len(set(networks.values())) > 1 or len(networks) < config.num_hidden_layers * len(self.networks):
            return None
        return {"conv_dim": conv_dim, "intermediate_size": next(iter(networks.values()))}

    def objection(self, config) -> str | None:
        for field in ("num_hidden_layers", "num_adapter_layers", "num_conv_pos_embeddings", "num_feat_extract_layers"):
            if (count := getattr(config, field, None) or 0) > MOST_LAYERS:
                return f"{field} {count}"
        if config.hidden_size > MOST_WIDTH:
            return f"a hidden size of {config.hidden_size}"
        if not all(stride >= 1 for stride in config.conv_stride):
            return f"convolutions with strides {list(config.conv_stride)}"
        if getattr(config, "add_adapter", False):
            return "convolutional adapters on top (add_adapter), which are not supported"
        return None

    def frames_of(self, config, samples):
        for kernel, stride in zip(config.conv_kernel, config.conv_stride):
            samples = (samples - kernel) // stride + 1
        return samples

    def stride(self, config) -> int:
        samples = 1
        for stride in config.conv_stride:
            samples *= stride
        return samples

    def output_size(self, config) -> int:
        return config.hidden_size

    def dropout(self, config) -> float:
        return config.final_dropout

    def masks_padding(self, config) -> bool:
        return getattr(config, "feat_extract_norm", "layer") == "layer"

    def freeze_feature_encoder(self, model: nn.Module) -> None:
        model.feature_extractor._freeze_parameters()

    def hidden_states(self, model: nn.Module, speech: Tensor, mask: Tensor | None, frames: Tensor) -> Tensor:
        masked = None
        if model.training and self._masks_frames(model.config) and int(frames.max()) < model.config.mask_time_length:
            # transformers refuses such a batch. Here it is not masked, like a short row of a longer batch.
            masked = torch.zeros(len(frames), int(frames.max()), dtype=torch.bool, device=speech.device)
        # Some published configurations ask for tuples.
        return model(speech, attention_mask=mask, mask_time_indices=masked, return_dict=True).last_hidden_state

    def leaves_out_parameters(self, config) -> bool:
        # Layerdrop skips blocks; without masking, the vector that replaces masked frames is unused.
        return bool(config.layerdrop) or not self._masks_frames(config)

    @staticmethod
    def _masks_frames(config) -> bool:
        # data2vec-audio's configuration has no apply_spec_augment.
        return getattr(config, "apply_spec_augment", True) and config.mask_time_prob > 0
