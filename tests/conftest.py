import pytest
import torch
from transformers import Wav2Vec2Config

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
    """Fields of a configuration that makes any of the four upstreams tiny."""
    return dict(TINY)


@pytest.fixture
def tiny_wav2vec2() -> Wav2Vec2Config:
    return Wav2Vec2Config(**TINY)
