"""Small wav2vec2 models with random weights, in a Hugging Face folder, to try the recipe."""

import os

import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from espnet_pinch.data.source import MADE, MADE_HERE, Source, write_record
from espnet_pinch.files import whole_folder


def mini_config(**changes) -> Wav2Vec2Config:
    """2.0 million parameters: 4 convolutions of 64 channels (20 ms per frame), 4 Transformer blocks of width 192.

    Args:
        changes: fields of the configuration to change.
    """
    fields = dict(
        conv_dim=(64, 64, 64, 64),
        conv_kernel=(20, 8, 8, 4),
        conv_stride=(10, 4, 4, 2),
        num_feat_extract_layers=4,
        feat_extract_norm="layer",  # layer norm throughout: padding and batching do not change the output
        conv_bias=True,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=8,
        do_stable_layer_norm=True,
        layerdrop=0.0,
    )
    return Wav2Vec2Config(**{**fields, **changes})


def micro_config(**changes) -> Wav2Vec2Config:
    """0.2 million parameters: ``mini_config`` with 48 channels and 3 blocks of width 64; so few that pruning costs WER.

    Args:
        changes: fields of the configuration to change.
    """
    fields = dict(conv_dim=(48, 48, 48, 48), hidden_size=64, num_hidden_layers=3, intermediate_size=256)
    return mini_config(**{**fields, **changes})


SMALL = dict(zip(MADE_HERE, (mini_config, micro_config)))


def make_small_upstream(folder: str | os.PathLike, name: str = "mini", seed: int = 0, **changes) -> None:
    """Write a small upstream to ``folder``, which appears only when it is complete.

    Args:
        folder: its parent is created if needed.
        name: a key of ``SMALL``.
        seed: of the random weights.
        changes: as ``mini_config``.
    """
    torch.manual_seed(seed)
    model = Wav2Vec2Model(SMALL[name](**changes))
    with whole_folder(folder) as new:
        model.save_pretrained(new)
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(new)
        write_record(new, Source(name).record(origin=f"{MADE}, seed {seed}"))
