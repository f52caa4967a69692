"""Sparse linears against dense ones, alone and in a model; the choice between them; what is refused."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2ForCTC, WavLMConfig, WavLMForCTC

from espnet_pinch.core.attach import TRANSFORMER_LINEARS, find_linears
from espnet_pinch.inference import sparse_linear, timing
from espnet_pinch.inference.sparse_linear import SparseLinear, use_backend


def prune(linear: nn.Linear, sparsity: float) -> nn.Linear:
    with torch.no_grad():
        size = linear.weight.abs().flatten()
        linear.weight[linear.weight.abs() <= size.kthvalue(round(sparsity * len(size))).values] = 0
    return linear


def block(sparsities: list[float]) -> nn.Sequential:
    return nn.Sequential(*(prune(nn.Linear(32, 32), s) for s in sparsities)).requires_grad_(False)


# Sides around the kernel's tile of 128 columns, its blocks of 64 frames and its groups of 16 rows.
@pytest.mark.parametrize("shape", [(7, 5), (16, 128), (33, 129), (130, 300), (256, 64)])
@pytest.mark.parametrize("frames", [(1,), (64,), (3, 50), (2, 2, 97)])
def test_a_sparse_layer_computes_what_the_dense_one_does(shape, frames):
    linear = prune(nn.Linear(shape[1], shape[0]), 0.8)
    x = torch.randn(*frames, shape[1])
    with torch.inference_mode():
        torch.testing.assert_close(SparseLinear(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


def test_rows_without_weights_no_bias_a_transposed_input_and_no_frames():
    linear = nn.Linear(20, 10, bias=False).requires_grad_(False)
    linear.weight[::2] = 0
    layer, x = SparseLinear(linear), torch.randn(20, 6).T
    torch.testing.assert_close(layer(x), linear(x))
    assert layer(x)[:, ::2].count_nonzero() == 0
    assert layer(x[:0]).shape == (0, 10)


def test_nothing_but_the_kept_weights_is_stored_and_the_dense_weight_comes_back():
    linear = prune(nn.Linear(300, 40), 0.9)
    layer = SparseLinear(linear)
    assert torch.equal(layer.weight, linear.weight)
    assert len(layer.values) == len(layer.columns) == linear.weight.count_nonzero()
    assert sum(b.nbytes for b in layer.buffers()) < linear.weight.nbytes / 5


def test_the_number_of_torchs_threads_is_left_as_it_is():
    module = "espnet_pinch.inference.sparse_linear"
    code = f"import torch; torch.set_num_threads(1); import {module}; print(torch.get_num_threads())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_NUM_THREADS": "2"}, capture_output=True
    )
    assert run.stdout == b"1\n"


def test_rows_of_the_weight_can_be_shared_out_among_threads():
    linear = prune(nn.Linear(40, 90), 0.5).requires_grad_(False)
    layer, x = SparseLinear(linear), torch.randn(3, 40)
    tensors = [t.numpy() for t in (layer.starts, layer.columns, layer.values, layer.bias, x)]
    for parts in (1, 2, 7):
        y = torch.empty(3, 90)
        sparse_linear.spmm(*tensors, y.numpy(), parts)
        torch.testing.assert_close(y, linear(x))


@pytest.mark.parametrize("config", ["wav2vec2", "wavlm"])
def test_logits_are_the_same_and_layers_whose_weight_is_read_stay_dense(config, tiny_config, tiny_wav2vec2):
    model = Wav2Vec2ForCTC(tiny_wav2vec2) if config == "wav2vec2" else WavLMForCTC(WavLMConfig(**tiny_config))
    model.eval()
    for linear in find_linears(model).values():
        prune(linear, 0.7)
    other, x = copy.deepcopy(model), torch.randn(2, 16000)
    backends = use_backend(other, "sparse")
    with torch.inference_mode():
        torch.testing.assert_close(other(x).logits, model(x).logits, atol=1e-4, rtol=0)
    assert list(backends) == list(find_linears(model, TRANSFORMER_LINEARS))
    for name, backend in backends.items():
        reads_weight = config == "wavlm" and ".attention." in name
        assert backend == ("dense" if reads_weight else "sparse")
        assert isinstance(other.get_submodule(name), nn.Linear if reads_weight else SparseLinear)


def test_dense_puts_nothing():
    model = block([0.9, 0.9])
    assert use_backend(model, "dense", r"^\d$") == {"0": "dense", "1": "dense"}
    assert all(type(layer) is nn.Linear for layer in model)


def test_auto_takes_what_was_measured_to_be_faster(monkeypatch):
    measured = []

    def seconds(functions, x):
        dense, layer = functions
        measured.append(tuple(x.shape))
        return [1.0, {0.5: 1.3, 0.7: 0.95, 0.8: 0.5}[round(1 - len(layer.values) / dense.weight.numel(), 1)]]

    monkeypatch.setattr(sparse_linear, "seconds", seconds)
    monkeypatch.setattr(sparse_linear, "_faster", {})
    model = block([0.5, 0.7, 0.801, 0.501, 0.805])
    assert list(use_backend(model, "auto", r"^\d$", frames=77).values()) == [
        "dense",  # slower
        "dense",  # not by enough
        "sparse",
        "dense",
        "sparse",
    ]
    assert measured == [(77, 32)] * 3  # once for every shape and sparsity
    use_backend(block([0.5]), "auto", r"^\d$", frames=77)
    assert len(measured) == 3
    use_backend(block([0.5]), "auto", r"^\d$", frames=78)
    assert len(measured) == 4


def test_seconds_are_those_of_each_function(monkeypatch):
    clock = iter([0.0, 9.0, 0.0, 9.0, 0.0, 3.0, 0.0, 5.0, 0.0, 2.0, 0.0, 7.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    assert timing.seconds([lambda x: calls.append("a"), lambda x: calls.append("b")], None, repeats=2) == [
        2.0,
        5.0,
    ]
    assert calls == ["a", "b"] * 3


def test_what_is_refused():
    with pytest.raises(ValueError, match="the backend 'gpu' is not one of auto, dense, sparse"):
        use_backend(block([0.5]), "gpu")
    with pytest.raises(ValueError, match="no linear layer of Sequential"):
        use_backend(block([0.5]), "sparse")
    for model in (block([0.5]).bfloat16(), block([0.5]).to("meta")):  # another device than the CPU
        for backend in ("auto", "sparse"):
            with pytest.raises(ValueError, match="the layer 0 is .* sparse products need float32 on cpu"):
                use_backend(model, backend, r"^\d$")
    layer = SparseLinear(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="no backward pass"):
        layer(torch.zeros(2, 4, requires_grad=True))
    with pytest.raises(ValueError, match="input of a SparseLinear is bfloat16"):
        layer(torch.zeros(2, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="4 input features got 5"):
        layer(torch.zeros(8, 5))
