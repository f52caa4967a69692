"""Grids of quantised weights: codes, levels, scales."""

import pytest
import torch

from espnet_pinch.core.grids import Grid, bits_of
from espnet_pinch.core.quantize import WIDTHS, round_others


def pruned(sparsity=0.7, shape=(48, 64), seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(weight.abs() >= weight.abs().quantile(sparsity), weight, 0)


def fitted(width, weight):
    grid = Grid(width)
    grid.fit(weight)
    return grid


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [(48, 64), (6, 4, 5)])
def test_codes_are_whole_numbers_with_few_levels_and_the_zeros_of_the_weight(width, shape):
    weight = pruned(shape=shape)
    codes, scales = fitted(width, weight).round(weight)
    assert torch.equal(codes, codes.round()) and codes.abs().max() <= 127
    assert torch.equal(codes == 0, weight == 0) and torch.equal(codes.sign(), weight.sign())
    assert len(codes.abs().unique()) - 1 <= (127 if width == 8 else 2 ** (bits_of(width) - 1))
    assert scales.shape == shape[:1]
    again = codes * scales.view(-1, *[1] * (len(shape) - 1))
    divided = again / torch.where(scales > 0, scales, 1).view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(divided.round(), codes)  # a file needs the scales alone to find the codes


@pytest.mark.parametrize("width", WIDTHS)
def test_weights_of_any_type_and_layout_are_rounded_alike(width):
    weight = pruned().half().float()
    grid = fitted(width, weight)
    want = grid.round(weight).codes
    assert torch.equal(grid.round(weight.double()).codes.float(), want)
    assert torch.equal(grid.round(weight.T.contiguous().T).codes, want)
    for dtype in (torch.bfloat16, torch.float16):
        codes = grid.round(weight.to(dtype)).codes
        assert codes.dtype == dtype and (codes.float() == want).float().mean() > 0.9
    weight[5, :3] = torch.tensor([float("nan"), float("inf"), -1.0])
    others = torch.arange(len(weight)) != 5
    assert torch.equal(grid.round(weight).codes[others], want[others])


def test_more_bits_are_nearer_and_fitted_levels_nearer_than_even_ones():
    weight = pruned()
    errors = [
        float((fitted(w, weight).round(weight).weight() - weight).square().sum()) for w in (8, 4, 3, 2, "ternary")
    ]
    assert errors == sorted(errors) and errors[0] < errors[1] / 20
    for width in (4, 3, 2):
        even = Grid(width)  # levels 1, 2, ...: with the best of many scales for the whole layer
        tried = []
        for unit in torch.linspace(0.05, 2, 100):
            even.unit.copy_(unit)
            tried.append(float((even.round(weight).weight() - weight).square().sum()))
        assert float((fitted(width, weight).round(weight).weight() - weight).square().sum()) < 0.9 * min(tried)


def test_the_ternary_scale_is_the_best_one():
    weight = pruned()
    codes, scales = fitted("ternary", weight).round(weight)
    error = (codes * scales[:, None] - weight).square().sum(1)
    for factor in (0.98, 1.02):
        assert (error <= (codes * scales[:, None] * factor - weight).square().sum(1)).all()


def test_rows_without_weights_and_single_weights_are_no_trouble():
    weight = torch.zeros(3, 4)
    weight[1, 2] = -5.0
    for width in WIDTHS:
        codes = fitted(width, weight).round(weight)
        assert codes.scales.isfinite().all()
        torch.testing.assert_close(codes.weight(), weight, rtol=0.01, atol=0)
    assert torch.equal(fitted(4, torch.zeros(3, 4)).round(torch.zeros(3, 4)).weight(), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", [(256, 4096), (4096, 256), (300, 1000)])
def test_levels_are_fitted_to_all_columns(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    columns = torch.rand(shape[1], generator=generator) < 0.05  # the only ones that are kept
    grid = fitted(4, weight * columns)
    few = weight[:, columns]
    error, best = (float((g.round(few).weight() - few).square().sum()) for g in (grid, fitted(4, few)))
    assert error < 1.3 * best


def test_the_others_are_rounded_row_by_row_and_vectors_are_left():
    weights = {"conv": torch.randn(4, 3, 2), "bias": torch.randn(4), "gain": torch.randn(1, 1, 5)}
    before = {name: weight.clone() for name, weight in weights.items()}
    scales = round_others(weights, 8)
    assert scales.keys() == {"conv"} and not torch.equal(weights["conv"], before["conv"])
    assert all(torch.equal(weights[name], before[name]) for name in ("bias", "gain"))
    assert (weights["conv"] - before["conv"]).abs().max() <= scales["conv"].max() / 2 + 1e-6
    weights = {"conv": before["conv"].clone()}
    assert round_others(weights, 16) == {} and torch.equal(weights["conv"], before["conv"].half().float())
    assert round_others(weights, 32) == {}
