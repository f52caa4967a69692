"""The architectures of the paper's upstreams: nothing is downloaded, and the models hold no weights in memory."""

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

# HuBERT's pre-training predicts 500 clusters and the four special symbols of every fairseq dictionary. 500 labels would
# give the paper's figures too.
HUBERT_LABELS = 500 + 4


def wav2vec2_base(**changes) -> Wav2Vec2Config:
    """facebook/wav2vec2-base-100h: transformers' defaults, with a head of 32 tokens."""
    return Wav2Vec2Config(**changes)


def hubert_large(**changes) -> HubertConfig:
    """facebook/hubert-large-ll60k: 24 blocks of width 1024. Fine-tuning adds a head of 32 tokens."""
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

    The head of the published checkpoint has one token fewer (769 parameters).
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
        upstream: a key of ``CONFIGS``, or a Hugging Face folder.

    Raises:
        UserError: ``upstream`` is neither, or the folder does not hold a supported model.
    """
    if upstream not in CONFIGS and not Path(upstream).is_dir():
        raise UserError(f"unknown upstream {upstream!r}; there is: {', '.join(CONFIGS)}, or a Hugging Face folder")
    config = CONFIGS[upstream]() if upstream in CONFIGS else read_config(upstream)
    try:
        with torch.device("meta"):
            return AutoModelForCTC.from_config(config)
    except Exception as error:  # transformers raises many types, some messages have several lines
        raise UserError(f"cannot build the upstream {upstream}: {one_line(error)}") from None


def pretraining_model(upstream: str) -> nn.Module:
    """The upstream as it was pre-trained: with the heads of that task and no CTC head, on the meta device.

    wav2vec2 has a quantizer and two projections. HuBERT, as fairseq trains it, has a projection to 256 dimensions
    (base) or 768 (large) and an embedding for each label. fairseq's large model has no biases in its convolutions; the
    checkpoint for transformers has them. WavLM was published without heads. It gets those of HuBERT-base here, because
    both have the same objective.

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
