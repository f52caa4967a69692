"""The gate's forward pass, and its gradients against the closed form and against autograd on the soft mask."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from espnet_pinch.core.gate import GatedLinear, kept_units, masked_linear, masked_weight

TAU = 0.3


@pytest.fixture
def tensors():
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    x, weight, bias = make(2, 5, 4), make(3, 4), make(3)
    threshold = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    return x, weight, bias, threshold


def soft(weight, threshold):
    return torch.sigmoid((weight**2 - threshold**2) / TAU)


def test_forward_keeps_what_is_not_under_the_threshold():
    weight = torch.tensor([[0.5, -0.5, 0.49, -0.6, 0.0]])
    masked = masked_weight(weight, torch.tensor(0.5), TAU)
    assert masked.tolist() == [[0.5, -0.5, 0.0, pytest.approx(-0.6), 0.0]]
    assert torch.equal(masked, masked_weight(weight, torch.tensor(-0.5), TAU))  # t enters as t^2


def test_masked_weight_has_the_gradient_of_the_soft_mask(tensors):
    _, weight, _, threshold = tensors
    upstream_gradient = torch.randn_like(weight)
    got = torch.autograd.grad(masked_weight(weight, threshold, TAU), (weight, threshold), upstream_gradient)
    want = torch.autograd.grad(weight * soft(weight, threshold), (weight, threshold), upstream_gradient)
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_masked_weight_has_the_closed_form_gradient(tensors):
    _, weight, _, threshold = tensors
    g = torch.randn_like(weight)
    grad_weight, grad_threshold = torch.autograd.grad(masked_weight(weight, threshold, TAU), (weight, threshold), g)
    m = soft(weight, threshold)
    torch.testing.assert_close(grad_weight, g * (m + 2 * weight**2 / TAU * m * (1 - m)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        grad_threshold, -2 * threshold / TAU * (g * weight * m * (1 - m)).sum(), rtol=1e-12, atol=1e-12
    )


def test_masked_linear_is_the_masked_weight_in_a_linear(tensors):
    g = torch.randn(2, 5, 3, dtype=torch.float64)
    x, weight, bias, threshold = tensors
    fused = masked_linear(x, weight, bias, threshold, TAU)
    plain = F.linear(x, masked_weight(weight, threshold, TAU), bias)
    torch.testing.assert_close(fused, plain)
    for one, other in zip(torch.autograd.grad(fused, tensors, g), torch.autograd.grad(plain, tensors, g)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_kept_units_counts_and_has_the_gradient_of_the_soft_count(tensors):
    _, weight, _, threshold = tensors
    count = kept_units(weight, threshold, TAU)
    assert count.item() == (weight.detach().abs() >= 0.6).sum().item()
    got = torch.autograd.grad(3 * count, (weight, threshold))
    want = torch.autograd.grad(3 * soft(weight, threshold).sum(), (weight, threshold))
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_nothing_but_weight_threshold_and_input_is_saved_for_backward(tensors):
    x, weight, bias, threshold = tensors
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        masked_linear(x, weight, bias, threshold, TAU)
        masked_weight(weight, threshold, TAU)
        kept_units(weight, threshold, TAU)
    assert set(saved) == {x.data_ptr(), weight.data_ptr(), threshold.data_ptr()}


def test_no_gradient_is_computed_where_none_is_wanted(tensors):
    x, weight, bias, threshold = (t.detach() for t in tensors)
    x.requires_grad_()
    masked_linear(x, weight, bias, threshold, TAU).sum().backward()
    assert x.grad is not None


def test_autocast_runs_in_its_dtype_and_gives_float32_gradients():
    layer = GatedLinear(nn.Linear(8, 6), threshold=0.1)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight_orig.grad.dtype == layer.threshold.grad.dtype == layer.bias.grad.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(y.float(), layer(x), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("bias", [True, False])
def test_fold_computes_the_same_and_has_zeros(bias):
    linear = nn.Linear(20, 10, bias=bias)
    gate = GatedLinear(linear, threshold=0.1)
    x = torch.randn(3, 20)
    before, kept = gate(x), int(gate.kept())
    folded = gate.fold()
    assert type(folded) is nn.Linear
    assert torch.equal(folded(x), before)
    assert torch.count_nonzero(folded.weight) == kept < 200


def test_weight_reads_as_the_masked_weight_and_trains_the_gate():
    gate = GatedLinear(nn.Linear(4, 4), threshold=0.2)
    gate.weight.sum().backward()
    assert gate.weight_orig.grad is not None and gate.threshold.grad is not None
    assert {name for name, _ in gate.named_parameters()} == {"weight_orig", "bias", "threshold"}
