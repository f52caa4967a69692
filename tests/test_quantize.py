"""Quantised weights: gradients, folding, mixed bits, and the whole way through ESPnet."""

import copy
import sys

import pytest
import test_espnet
import test_targets
import torch
from test_espnet import options
from test_grids import fitted
from torch import nn
from transformers import Data2VecAudioConfig, HubertConfig, Wav2Vec2ConformerConfig, WavLMConfig

import espnet_pinch
from espnet_pinch import Pinch
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.bin import fold
from espnet_pinch.core.gate import GatedLinear
from espnet_pinch.core.grids import Grid
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.mixed_bits import MixedQuantization, build_quantization
from espnet_pinch.core.quantize import WIDTHS, Quantization, QuantizedLayer
from espnet_pinch.core.registry import build_method
from espnet_pinch.errors import UserError
from espnet_pinch.export.any_target import Trained
from espnet_pinch.export.sparse_file import write_sparse

data, upstream = test_espnet.data, test_espnet.upstream


@pytest.mark.parametrize("width", WIDTHS)
def test_the_gradient_ignores_the_rounding_and_goes_through_the_gate(width):
    torch.manual_seed(1)
    gate = GatedLinear(nn.Linear(6, 5).double(), threshold=0.2, tau=0.05)
    layer = QuantizedLayer(gate, width).double()
    layer.fit()
    x, wanted = torch.randn(4, 6).double(), torch.randn(4, 5).double()
    (layer(x) * wanted).sum().backward()
    grad = wanted.T @ x  # of Q(W * M), and so of W * M
    weight, threshold = gate.weight_orig.detach(), gate.threshold.detach()
    mask = ((weight.square() - threshold.square()) / gate.tau).sigmoid()
    slope = mask * (1 - mask) / gate.tau
    torch.testing.assert_close(gate.weight_orig.grad, grad * (mask + 2 * weight.square() * slope))
    torch.testing.assert_close(gate.threshold.grad, (-2 * threshold * weight * grad * slope).sum())
    torch.testing.assert_close(gate.bias.grad, wanted.sum(0))
    with torch.no_grad():
        assert torch.equal(layer(x), x @ layer.grid.round(gate.weight).weight().T + gate.bias)


BLOCKS = {
    "pinch": {},
    "structured": {"method": "pinch", "pinch": {"unit": "structured", "multiple": 2, "threshold_lr": 2e-2}},
    "l0": {"method": "l0", "l0": {"multiple": 2}},
    "ump": {"method": "ump"},
    "dense": {"method": "dense"},
}


def begin(bits, block=None, steps=40, **more):
    torch.manual_seed(0)
    net = test_targets.Net()
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    method = build_method({"layers": "dense$", "target_sparsity": 0.5, **(block or {})})
    method.attach(net, total_steps=steps)
    quantization = build_quantization({"bits": bits, **more})
    quantization.attach(net, names, method)
    groups = quantization.parameter_groups(method.parameter_groups(lr=2e-3))
    return net, method, quantization, torch.optim.AdamW(groups)


def train(net, method, quantization, optimizer, steps, start=0):
    for step in range(start, start + steps):
        loss = test_targets.one_step(net, optimizer, step, method, quantization)
    return loss


@pytest.mark.parametrize("bits", [8, 4, "ternary", "mixed"])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_method_is_trained_and_folded_quantised(block, bits):
    more = {"average_bits": 3.0} if bits == "mixed" else {}
    net, method, quantization, optimizer = begin(bits, block, **more)
    train(net, method, quantization, optimizer, 40)
    method.land()
    quantization.land()
    quantization.fit()
    net.eval()
    x = torch.randn(8, 16)
    with torch.no_grad():
        want = net(x)
        scales = quantization.fold()
        torch.testing.assert_close(net(x), want, rtol=1e-4, atol=1e-5)
    linears = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    assert scales.keys() == {f"{name}.weight" for name in linears}
    for name, linear in linears.items():
        codes = linear.weight / scales[f"{name}.weight"][:, None].clamp(min=1e-30)
        assert type(linear) is nn.Linear and torch.allclose(codes, codes.round(), atol=1e-4)
        if bits == "ternary":
            assert len(codes.round().abs().unique()) <= 2
    assert not any(isinstance(m, QuantizedLayer) for m in net.modules())


@pytest.mark.slow
def test_training_on_the_rounded_weights_beats_rounding_afterwards():
    block = {"pinch": {"threshold_lr": 2e-2}}
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(99))
    losses = []
    for bits in ("ternary", 8):
        net, method, quantization, optimizer = begin(bits, block, steps=400)
        train(net, method, quantization, optimizer, 400)
        for layer in quantization.layers.values():  # what the other run has not trained for
            layer.grids[0] = Grid("ternary")
        quantization.fold()
        with torch.no_grad():
            losses.append(float((net(x) - x.flip(1)).square().mean()))
    assert losses[0] < 0.8 * losses[1]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped():
    for bits, more in ((4, {}), ("mixed", {"average_bits": 3.0})):
        for cut in (13, 30):
            parts = begin(bits, **more)
            train(*parts, cut)
            saved = copy.deepcopy([part.state_dict() for part in (parts[0], parts[1], parts[3])])
            train(*parts, 40 - cut, start=cut)
            again = begin(bits, **more)
            for part, state in zip((again[0], again[1], again[3]), saved):
                part.load_state_dict(state)
            train(*again, 40 - cut, start=cut)
            want = parts[0].state_dict()
            assert all(torch.equal(value, want[key]) for key, value in again[0].state_dict().items())


SEVERAL = {"method": "pinch", "target_sparsity": [0.4, 0.6, 0.9], "pinch": {"threshold_lr": 2e-2, "reach_by": 0.2}}


def test_each_of_several_targets_has_levels_of_its_own():
    net, method, quantization, optimizer = begin(2, SEVERAL, steps=120)
    train(net, method, quantization, optimizer, 119)
    assert all(method.landed)
    seen = set()
    for target in method.targets:
        method.use(target)
        with torch.no_grad():
            net.eval()(torch.randn(2, 16))  # takes the levels of the target
        for name, layer in quantization.layers.items():
            weight = layer.layer.weight.detach()
            best, grid = fitted(2, weight), layer.grid
            errors = [float((g.round(weight).weight() - weight).square().sum()) for g in (grid, best)]
            assert errors[0] <= 1.1 * errors[1]
            seen.add((name, float(grid.unit), float(grid.levels[0])))
    assert len(seen) > 2 * len(quantization.layers)


def test_mixed_bits_meet_their_average_at_each_of_several_targets():
    net, method, quantization, optimizer = begin("mixed", SEVERAL, steps=120, average_bits=3.0)
    train(net, method, quantization, optimizer, 119)
    method.land()
    quantization.land()
    assert quantization.settled()
    for _ in quantization.each_target():
        kept = {name: int(layer.layer.weight.count_nonzero()) for name, layer in quantization.layers.items()}
        bits = {name: layer.grid.bits for name, layer in quantization.layers.items()}
        total = sum(kept.values())
        reached = sum(kept[name] * bits[name] for name in kept) / total
        assert reached == pytest.approx(quantization.average_bits()) and reached <= 3.0
        assert reached >= 3.0 - 4 * max(kept.values()) / total


class Fixed(PruningMethod):
    """Tells a quantisation how far the run is."""


@pytest.mark.parametrize("average", [1.5, 2.0, 3.5, 5.0, 8.0])
def test_mixed_bits_land_on_their_average(average):
    for seed in range(20):
        torch.manual_seed(seed)
        sizes = torch.randint(4, 40, (10, 2)).tolist()
        net = nn.Sequential(*(nn.Linear(*size) for size in sizes))
        method = Fixed()
        method.attach(net, total_steps=10)
        quantization = MixedQuantization(bits="mixed", average_bits=average)
        quantization.attach(net, [str(i) for i in range(10)], method)
        with torch.no_grad():
            for choice in quantization.new_parameters():
                choice.copy_(torch.randn(5))
        quantization.land()
        count = torch.tensor([float(a * b) for a, b in sizes])
        bits = torch.tensor([float(layer.grid.bits) for layer in quantization.mixed])
        reached = float((bits * count).sum() / count.sum())
        assert reached == pytest.approx(quantization.average_bits()) and quantization.settled()
        assert reached <= average
        step = max(4 * float(count.max() / count.sum()), 1e-9)  # of the largest layer, from 4 bits to 8
        assert reached >= min(average, 8.0) - step


def test_mixed_bits_go_where_they_are_of_use():
    """One layer's rounding hurts, the other's output is hardly used."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"used": nn.Linear(16, 16), "unused": nn.Linear(16, 16)})
    method = Fixed()
    model = nn.Module()
    model.net = net
    model.forward = lambda x: net["used"](x) + 1e-3 * net["unused"](x)
    method.attach(model, total_steps=200)
    quantization = MixedQuantization(bits="mixed", average_bits=3.0, bits_lr=0.05)
    quantization.attach(model, ["net.used", "net.unused"], method)
    groups = quantization.parameter_groups(method.parameter_groups(lr=1e-4))
    optimizer = torch.optim.AdamW(groups)
    teacher = copy.deepcopy(net["used"].layer)
    for step in range(200):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss = 100 * (model(x) - teacher(x)).square().mean() + quantization.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    used, unused = (layer.grid.bits for layer in quantization.mixed)
    assert used > unused and quantization.average_bits() <= 3.0


def test_the_penalty_on_bits_is_their_expected_average():
    net, method, quantization, _ = begin("mixed", average_bits=1.5, bits_weight=0.7)
    quantization.fit()
    penalty = quantization.penalty()
    penalty.backward()
    assert 0.7 * 1 < float(penalty) < 0.7 * 8
    assert all(choice.grad.abs().sum() > 0 for choice in quantization.new_parameters())
    quantization.choose()
    assert float(quantization.penalty()) == 0.0 and quantization.penalty().requires_grad  # DistributedDataParallel


@pytest.mark.parametrize(
    "block, message",
    [
        ({"bits": 5}, "quantize.bits must be one of 8, 4, 3, 2, ternary, mixed, not 5"),
        ({"bits": True}, "quantize.bits must be one of"),
        ({"bits": [4]}, "quantize.bits must be one of"),
        ({"bits": "mixed"}, "quantize.average_bits goes with bits: mixed"),
        ({"bits": 4, "average_bits": 3.5}, "quantize.average_bits goes with bits: mixed"),
        ({"bits": "mixed", "average_bits": 9}, "quantize.average_bits must be over 1 and at most 8"),
        ({"bits": "mixed", "average_bits": 1}, "quantize.average_bits must be over 1 and at most 8"),
        ({"bits": "mixed", "average_bits": "x"}, "quantize.average_bits must be a number"),
        ({"others": 4}, "quantize.others must be one of 8, 16, 32, not 4"),
        ({"bit": 4}, "unknown setting 'bit' in the quantize block"),
        ({"bits": "mixed", "average_bits": 3, "reach_by": 1.0}, "quantize.reach_by must be under 1"),
        (["bits"], "the quantize block must be a mapping"),
    ],
)
def test_settings_that_do_not_fit_get_one_line(block, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_quantization(block)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "method, more",
    [
        ("pinch", ["bits=mixed", "average_bits=3"]),
        ("nas_cp", ["bits=4"]),
        ("structured", ["bits=mixed", "average_bits=3"]),
    ],
    ids=["pinch-mixed", "nas_cp-4", "structured-mixed"],
)
def test_a_quantised_training_is_folded_and_loaded_again(data, upstream, tmp_path, monkeypatch, method, more):
    exp = tmp_path / "exp"
    pruning = (
        ["method=pinch", "pinch.unit=structured", "pinch.multiple=4"]
        if method == "structured"
        else [f"method={method}"]
    )
    args = [part for option in [*pruning, "target_sparsity=0.5"] for part in ("--pruning", option)]
    args += [part for option in more for part in ("--quantize", option)]
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *args, "--max_epoch", "2"))
    monkeypatch.setattr(sys, "argv", ["fold", "--exp", str(exp)])
    fold.main()
    model = espnet_pinch.load(exp / "folded")
    weights = model.state_dict()
    assert {name for name, weight in weights.items() if weight.dim() > 1 and len(weight) > 1} <= model.scales.keys()
    for name, scales in model.scales.items():
        rows = weights[name].flatten(1) / torch.where(scales > 0, scales, 1)[:, None]
        assert torch.allclose(rows, rows.round(), atol=1e-3) and rows.abs().max() < 127.5
    write_sparse(tmp_path / "m.safetensors", model, "quantized")
    again = espnet_pinch.load(tmp_path / "m.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert again.scales.keys() == model.scales.keys()
    assert all(torch.equal(scales, model.scales[name]) for name, scales in again.scales.items())
    with pytest.raises(UserError, match="was trained with bits already"):
        Trained(exp, quantize={"bits": 4})


@pytest.mark.parametrize(
    "config_class, fields",
    [
        (HubertConfig, {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
        (WavLMConfig, {}),  # its attention reads the weights of its layers instead of calling them
        (Data2VecAudioConfig, {"conv_pos_kernel_size": 3}),
        (Wav2Vec2ConformerConfig, {"conv_depthwise_kernel_size": 5}),
    ],
)
def test_every_family_computes_the_same_before_and_after_folding(config_class, fields, ctc_folder, data, tmp_path):
    tokens = (data / "tokens.txt").read_text(encoding="utf-8").splitlines()
    published = {"<blank>": "<pad>", "<sos/eos>": "</s>", "<space>": "|"}
    ctc_folder(tmp_path / "up", [published.get(token, token) for token in tokens], config_class, **fields)
    more = ("--pruning", "target_sparsity=0.5", "--quantize", "bits=2", "--quantize", "others=32")
    args = PruningASRTask.get_parser().parse_args(options(data, tmp_path / "up", tmp_path / "exp", "mini.yaml", *more))
    model = PruningASRTask.build_model(args).eval()
    model.land()
    model.quantization.fit()
    speech, lengths = torch.randn(2, 8000), torch.tensor([8000, 6000])
    with torch.no_grad():
        hidden, frames = model.frontend(speech, lengths)
        model.fold()
        folded, _ = model.frontend(speech, lengths)
    assert len(model.scales) >= 2 * 6
    for row, other, count in zip(hidden, folded, frames):
        torch.testing.assert_close(row[:count], other[:count], rtol=1e-4, atol=1e-4)


def test_the_core_can_be_used_alone():
    net = test_targets.Net()
    pinch, quantization = Pinch(target_sparsity=0.5, layers="dense$"), Quantization(bits=4)
    pinch.attach(net, total_steps=10)
    quantization.attach(net, list(pinch.gates), pinch)
    optimizer = torch.optim.AdamW(quantization.parameter_groups(pinch.parameter_groups(lr=2e-3)))
    train(net, pinch, quantization, optimizer, 10)
    assert 0.5 <= pinch.sparsity() and quantization.fold()


def test_a_search_with_bits_that_no_target_allows_says_so(data, upstream, tmp_path, monkeypatch):
    exp = tmp_path / "exp"
    args = ("--pruning", "method=pinch", "--pruning", "target_sparsity=0.5", "--max_epoch", "1")
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *args))
    trained = Trained(exp, quantize={"bits": "ternary"})
    rates = {False: 10.0, True: 12.5}
    monkeypatch.setattr(Trained, "_wer", staticmethod(lambda model, *_: rates[model.quantization is not None]))
    said = []
    with pytest.raises(UserError, match=r"no target is within 2 points: .* 50 %, has WER 12.50 % instead of 10.00 %"):
        trained.sparsest(2, data, say=said.append)
    assert said == ["target 50 %: WER 10.00 %, the reference", "target 50 %, ternary: WER 12.50 %"]
    assert trained.sparsest(2.5, data, say=said.append) == 0.98
