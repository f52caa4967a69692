"""The gate's passes over a weight in pieces: the same as over the whole, wherever the cuts fall."""

import pytest
import torch

from espnet_pinch.core import score
from espnet_pinch.core.gate import kept_units, masked_linear, masked_weight
from espnet_pinch.core.score import MAGNITUDE

TAU = 0.3


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_the_whole_weight(monkeypatch, transposed):
    monkeypatch.setattr(score, "PIECE", 5)  # 12 weights: two pieces and a rest
    weight = torch.randn(4, 3, dtype=torch.float64).T.requires_grad_() if transposed else torch.randn(3, 4).double()
    weight.requires_grad_()
    threshold = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    x, g = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)

    def soft():
        return torch.sigmoid((weight**2 - threshold**2) / TAU)

    by_output = torch.einsum("bto,bti->oi", g, x)  # what reaches the masked weight
    want = torch.autograd.grad((weight * soft() * by_output).sum(), (weight, threshold))
    for got in (
        torch.autograd.grad(masked_linear(x, weight, None, threshold, TAU), (weight, threshold), g),
        torch.autograd.grad(masked_weight(weight, threshold, TAU), (weight, threshold), by_output),
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    want = torch.autograd.grad(2 * soft().sum(), (weight, threshold))
    got = torch.autograd.grad(2 * kept_units(weight, threshold, TAU), (weight, threshold))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_incoming_gradient_is_left_as_it_is():
    weight, threshold = torch.randn(3, 4, requires_grad=True), torch.tensor(0.6)
    g = torch.randn(3, 4)
    before = g.clone()
    masked_weight(weight, threshold, TAU).backward(g)
    assert torch.equal(g, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_count_and_mask_agree_at_the_threshold_itself(monkeypatch, dtype):
    monkeypatch.setattr(score, "PIECE", 300)
    weight = torch.randn(40, 50).to(dtype)
    for threshold in (weight[3, 4], -weight[5, 6].abs(), torch.zeros((), dtype=dtype)):
        mask, masked = MAGNITUDE.mask(weight, threshold), MAGNITUDE.apply(weight, threshold)
        assert torch.equal(masked, weight * mask)
        assert not torch.signbit(masked[~mask]).any()  # no -0.0
        assert MAGNITUDE.count(weight, threshold) == mask.sum()
        assert MAGNITUDE.count(weight, threshold).dtype == torch.int64
