"""The paper's upstreams as architectures: configurations that need no download, models that need no memory."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCTC,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
    WavLMConfig,
    WavLMModel,
)

from espnet_pinch.asr.small_upstreams import SMALL
from espnet_pinch.asr.upstream import read_config
from espnet_pinch.errors import UserError, one_line

# Targets of HuBERT's pre-training: 500 clusters, and the four special symbols of every fairseq dictionary. With 500
# the paper's figures come out as well.
HUBERT_LABELS = 500 + 4


def wav2vec2_base(**changes) -> Wav2Vec2Config:
    """facebook/wav2vec2-base-100h: transformers' defaults, with a head of 32 tokens."""
    return Wav2Vec2Config(**changes)


def hubert_large(**changes) -> HubertConfig:
    """facebook/hubert-large-ll60k: 24 blocks of 1024; fine-tuned, it gets a head of 32 tokens."""
    fields = dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
    )
    return HubertConfig(**{**fields, **changes})


def wavlm_base_plus(**changes) -> WavLMConfig:
    """patrickvonplaten/wavlm-libri-clean-100h-base-plus: transformers' defaults, with a head of 32 tokens.

    The published checkpoint's own head has one token less (769 parameters).
    """
    return WavLMConfig(**changes)


CONFIGS = {
    "wav2vec2_base": wav2vec2_base,
    "hubert_large": hubert_large,
    "wavlm_base_plus": wavlm_base_plus,
    **SMALL,
}


def ctc_model(upstream: str) -> PreTrainedModel:
    """The model with its CTC head, on the meta device: names and shapes, no values.

    Args:
        upstream: a name of ``CONFIGS``, or a Hugging Face folder.

    Raises:
        ValueError: neither of them, or a folder that is not the model of an upstream.
    """
    if upstream not in CONFIGS and not Path(upstream).is_dir():
        raise UserError(f"unknown upstream {upstream!r}; there is: {', '.join(CONFIGS)}, or a Hugging Face folder")
    try:
        config = CONFIGS[upstream]() if upstream in CONFIGS else read_config(upstream)
        with torch.device("meta"):
            return AutoModelForCTC.from_config(config)
    except Exception as error:  # transformers raises many kinds, some of several lines
        raise UserError(f"cannot build the upstream {upstream}: {one_line(error)}") from None


def pretraining_model(upstream: str) -> nn.Module:
    """What the upstream was in pre-training: with the heads of that task and no CTC head, on the meta device.

    wav2vec2 has a quantizer and two projections. HuBERT, as fairseq trains it, has a projection to 256 dimensions
    (base) or 768 (large) and an embedding for each label; its large model has no biases in the convolutions, where
    the checkpoint for transformers has some. WavLM was published without heads: it is given those of HuBERT-base, whose
    objective it shares.

    Args:
        upstream: "wav2vec2_base", "hubert_large" or "wavlm_base_plus".
    """
    with torch.device("meta"):
        if upstream == "wav2vec2_base":
            return Wav2Vec2ForPreTraining(wav2vec2_base())
        if upstream == "hubert_large":
            model, dim = HubertModel(hubert_large(conv_bias=False)), 768
        else:
            model, dim = WavLMModel(wavlm_base_plus()), 256
        return nn.ModuleList([model, nn.Linear(model.config.hidden_size, dim), nn.Embedding(HUBERT_LABELS, dim)])
