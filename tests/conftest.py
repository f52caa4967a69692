import functools
import json

import pytest
import torch
from transformers import AutoModelForCTC, Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

TINY = dict(
    conv_dim=(8, 8),
    conv_kernel=(10, 8),
    conv_stride=(10, 32),
    num_feat_extract_layers=2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    layerdrop=0.0,
    vocab_size=32,
    pad_token_id=0,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> dict:
    """Fields of a configuration that makes any of the upstreams tiny."""
    return dict(TINY)


@pytest.fixture
def tiny_wav2vec2() -> Wav2Vec2Config:
    return Wav2Vec2Config(**TINY)


@pytest.fixture
def ctc_folder(tiny_config):
    """Makes a Hugging Face folder of a random CTC model with a vocabulary; returns its path."""
    return functools.partial(make_ctc_folder, tiny_config)


def make_ctc_folder(fields, folder, names, config_class=Wav2Vec2Config, tokenizer=None, **changes):
    """
    Args:
        fields: of the configuration.
        names: tokens in the order of the head's rows.
        tokenizer: settings of Wav2Vec2CTCTokenizer; no tokenizer files without.
        changes: of the fields; the blank is the first token where they do not say.
    """
    config = config_class(**{**fields, "vocab_size": len(names), **changes})
    model = AutoModelForCTC.from_config(config)
    torch.nn.init.normal_(model.lm_head.weight, std=3.0)  # so that it says something
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({name: row for row, name in enumerate(names)}), encoding="utf-8")
    if tokenizer is not None:
        Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **tokenizer).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder
