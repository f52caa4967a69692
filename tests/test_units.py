"""Gates over whole heads, channels and filters: their gradients, how they land, and what is left when they are cut."""

import copy
import functools

import pytest
import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    OmniASRAudioConfig,
    OmniASRCTCConfig,
    OmniASRCTCModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from espnet_pinch.asr.family import find_family
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.channels import TRANSFORMER_TIES
from espnet_pinch.core.group_gates import counts, take_gates
from espnet_pinch.core.group_gates import gate_groups as put_gates
from espnet_pinch.core.registry import build_method
from espnet_pinch.core.unit_gates import UnitGate, land
from espnet_pinch.core.units import find_groups, weight_cost

TAU, THRESHOLD = 0.3, 1.0


class Attention(nn.Module):
    """Two heads of three channels, without a softmax: enough to have all parts of a group."""

    def __init__(self):
        super().__init__()
        self.head_dim = 3
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(5, 6) for _ in range(3))
        self.out_proj = nn.Linear(6, 5)

    def forward(self, x):
        return self.out_proj(self.q_proj(x) * self.k_proj(x).tanh() + self.v_proj(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.feed_forward = nn.ModuleDict({"intermediate_dense": nn.Linear(5, 8), "output_dense": nn.Linear(8, 5)})

    def forward(self, x):
        first, second = self.feed_forward.values()
        return second(first(self.attention(x)).relu())


def upstream(name):
    """A tiny model of a family; its family."""
    fields = dict(
        conv_dim=(8, 16, 12), conv_kernel=(10, 8, 4), conv_stride=(10, 8, 4), num_feat_extract_layers=3, hidden_size=24,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, layerdrop=0.0,
    )  # fmt: skip
    config, model = {
        "wav2vec2": (Wav2Vec2Config(**fields), Wav2Vec2Model),
        "wav2vec2 with layer norms": (
            Wav2Vec2Config(**fields, feat_extract_norm="layer", conv_bias=True),
            Wav2Vec2Model,
        ),
        "hubert": (HubertConfig(**fields, feat_extract_norm="layer", do_stable_layer_norm=True), HubertModel),
        "data2vec-audio": (Data2VecAudioConfig(**fields, conv_pos_kernel_size=3), Data2VecAudioModel),
        "wavlm": (WavLMConfig(**fields), WavLMModel),
        "wav2vec2-conformer": (
            Wav2Vec2ConformerConfig(**fields, position_embeddings_type="rotary", conv_depthwise_kernel_size=5),
            Wav2Vec2ConformerModel,
        ),
        "omniasr": (
            OmniASRCTCConfig(audio_config=OmniASRAudioConfig(**fields)),
            OmniASRCTCModel,
        ),
    }[name]
    made = model(config).eval()
    for p in made.parameters():  # norms and biases too: what they leave behind shows
        nn.init.normal_(p, std=0.3)
    return made, find_family(config.model_type)


def gate_groups(model, groups, threshold=1e-5):
    return put_gates(model, groups, functools.partial(UnitGate, threshold=threshold))


def groups_of(model, family, multiple=1):
    linears = find_linears(model, family.layers)
    groups = [*find_groups(model, linears, family.ties(model.config), multiple), *family.filters(model, multiple)]
    return [[group] for group in groups]


def soft_model(block, groups, thresholds):
    """The same model with the soft mask in the place of the gates, for autograd."""
    weights = dict(block.named_parameters())
    masked = {}
    for [group], threshold in zip(groups, thresholds):
        parts = [(p, weights[f"{p.layer}.weight"]) for p in group.parts]
        channels = [(w if p.axis == 0 else w.T).reshape(group.units, -1) for p, w in parts]
        score = torch.cat(channels, 1).square().mean(1)
        score = score / score.detach().mean()  # the gates' scale
        mask = torch.sigmoid((score - threshold**2) / TAU).repeat_interleave(group.size)
        for p, w in parts:
            masked[f"{p.layer}.weight"] = w * (mask[:, None] if p.axis == 0 else mask[None])
    return masked


def test_the_gradient_is_that_of_the_soft_mask_at_the_masked_weights():
    """In closed form: every layer's gradient at the hard mask, carried back by autograd through the soft one."""
    block = Block().double()
    groups = [[g] for g in find_groups(block, find_linears(block, "proj|dense"), find_family("wav2vec2").ties(None))]
    assert [(g.name, g.kind, g.units, g.size) for [g] in groups] == [
        ("attention", "heads", 2, 3),
        ("feed_forward", "channels", 8, 1),
    ]
    gated = copy.deepcopy(block)
    gates = gate_groups(gated, groups, THRESHOLD)
    for gate in gates:
        gate.tau = TAU
    x, g = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    (gated(x) * g).sum().backward()
    hard = {f"{p.layer}.weight": gated.get_submodule(p.layer).weight.detach() for [gr] in groups for p in gr.parts}
    assert any((weight == 0).any() for weight in hard.values())
    leaves = {name: weight.clone().requires_grad_() for name, weight in hard.items()}
    (torch.func.functional_call(block, leaves, (x,)) * g).sum().backward()  # gradients at the masked weights
    thresholds = [torch.tensor(THRESHOLD).double().requires_grad_() for _ in groups]
    soft = soft_model(block, groups, thresholds)
    sum((soft[name] * leaves[name].grad).sum() for name in soft).backward()
    for name in soft:
        layer = gated.get_submodule(name.removesuffix(".weight"))
        torch.testing.assert_close(layer.weight_orig.grad, block.get_parameter(name).grad, rtol=1e-9, atol=1e-12)
    for gate, threshold in zip(gates, thresholds):
        torch.testing.assert_close(gate.threshold.grad, threshold.grad.to(gate.threshold), rtol=1e-9, atol=1e-12)


def test_the_number_of_kept_units_has_the_gradient_of_the_soft_count():
    block = Block().double()
    groups = [[g] for g in find_groups(block, find_linears(block, "proj|dense"), find_family("wav2vec2").ties(None))]
    gates = gate_groups(copy.deepcopy(block), groups, THRESHOLD)
    for gate in gates:
        gate.tau = TAU
        kept = gate.kept()
        assert kept == gate.hard().sum()
        threshold = gate.threshold.detach().clone().requires_grad_()
        [(score, _)] = gate.units()
        want = torch.autograd.grad(
            torch.sigmoid((score - threshold**2) / TAU).sum(), (threshold, *gate.weights[0]), retain_graph=True
        )
        got = torch.autograd.grad(kept, (gate.threshold, *gate.weights[0]))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{"pinch": {"unit": "structured", "conv": True}}, {"method": "l0"}, {"method": "nas_cp"}]
)
def test_gradients_are_those_of_the_forward_pass_whatever_comes_between(settings):
    def attached():
        torch.manual_seed(3)
        model, family = upstream("wav2vec2 with layer norms")
        method = build_method({"target_sparsity": 0.5, "layers": family.layers, **settings})
        method.attach(model, total_steps=20, structure=family.structure(model))
        model.config.apply_spec_augment = False  # it takes numpy's random numbers
        return model.train(), method

    def loss(model, seed):
        torch.manual_seed(seed)  # of dropout
        return model(torch.randn(2, 3200)).last_hidden_state.square().mean()

    def gradients(model):
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model, method = attached()
    (loss(model, 1) + loss(model, 2) + method.penalty()).backward()
    want = gradients(model)
    model, method = attached()
    first, second, penalty = loss(model, 1), loss(model, 2), method.penalty()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        loss(model.eval(), 0)
    for part in (first, second, penalty):
        part.backward()
    torch.testing.assert_close(gradients(model), want, rtol=1e-4, atol=1e-7)
    assert not gradients(copied)
    model, method = attached()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    (loss(model, 1) + loss(model, 2) + method.penalty()).backward()
    torch.testing.assert_close(gradients(model), want, rtol=1e-4, atol=1e-7)
    if settings.get("method") == "nas_cp":
        return  # as of a plain layer, checkpointing takes the weights of the backward pass
    lost = loss(model, 1)
    with torch.no_grad():
        model.encoder.layers[1].feed_forward.output_dense.weight_orig.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation|changed in place"):
        lost.backward()


@pytest.mark.parametrize(
    "name",
    ["wav2vec2", "wav2vec2 with layer norms", "hubert", "data2vec-audio", "wavlm", "wav2vec2-conformer", "omniasr"],
)
def test_what_is_left_is_a_plain_smaller_model_of_the_same_function(name):
    model, family = upstream(name)
    groups = groups_of(model, family, multiple=4)
    plain, cost = set(map(type, model.modules())), weight_cost(model, groups)
    before = sum(p.numel() for p in model.parameters())
    gates = gate_groups(model, groups, 0.1)
    speech, mask = torch.randn(3, 3200), torch.ones(3, 3200).long()
    mask[1, 2000:] = mask[2, 1500:] = 0
    speech, frames = speech * mask, family.frames_of(model.config, mask.sum(1))
    land(gates, cost, 0.4)
    widths = counts(gates)
    assert 0.5 * cost.full < cost.of(widths) <= 0.6 * cost.full and widths != list(cost.widths)
    with torch.no_grad():
        want = [family.hidden_states(model, speech, of_batch, frames) for of_batch in (None, mask)]
        left = take_gates(model, gates, family.structure(model))
        got = [family.hidden_states(model, speech, of_batch, frames) for of_batch in (None, mask)]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert {g.name: g.units for [g] in groups} | left == {g.name: n for [g], n in zip(groups, widths)}
    assert sum(p.numel() for p in model.parameters()) < before
    assert {t.__name__ for t in set(map(type, model.modules())) - plain} <= {"FewerHeads"}


def relative_conformer():
    torch.manual_seed(0)
    model, family = upstream("wav2vec2-conformer")
    config = Wav2Vec2ConformerConfig(**{**model.config.to_dict(), "position_embeddings_type": "relative"})
    return Wav2Vec2ConformerModel(config).eval(), family


@pytest.mark.parametrize("uniform, layers", [(True, None), (False, r"ffn[12]\.(intermediate|output)_dense$")])
def test_feed_forward_networks_beside_heads_that_cannot_be_cut(uniform, layers):
    """With relative positions the heads of a conformer are none of the units."""
    model, family = relative_conformer()
    block = {"target_sparsity": 0.4, "layers": family.layers, "pinch": {"unit": "structured", "multiple": 4}}
    with pytest.raises(ValueError, match="linear_q breaks this rule: choose layers by the setting layers"):
        build_method(block).attach(copy.deepcopy(model), structure=family.structure(model))
    block["pinch"]["uniform"] = uniform
    method = build_method({**block, "layers": layers or family.layers})
    method.attach(model, total_steps=10, structure=family.structure(model))
    method.land()
    speech = torch.randn(2, 3200)
    with torch.no_grad():
        want = model(speech).last_hidden_state
        left = method.fold()
        torch.testing.assert_close(model(speech).last_hidden_state, want, rtol=1e-5, atol=1e-5)
    assert left and all(".ffn" in name for name in left)
    again, _ = relative_conformer()
    family.narrow(again, left)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_wavlm_with_fewer_heads_has_a_mean_of_checkpoints():
    """ESPnet's mean divides floats alone."""
    model, family = upstream("wavlm")
    attention = next(group for [group] in groups_of(model, family) if group.kind == "heads")
    family.cut(model, attention, torch.tensor([1, 3]))
    states = copy.deepcopy(model.state_dict())
    for places in ([3.0, 1.0], [0.0, 4.0], [0.5, 1.0], [1.0, 1.0]):
        forged = {n: torch.tensor(places) if n.endswith("places") else value for n, value in states.items()}
        with pytest.raises(ValueError, match="places: not the places of some of 4 heads"):
            model.load_state_dict(forged)
    model.load_state_dict(states)
    mean = {name: (2 * value / 2 if value.is_floating_point() else 2 * value) for name, value in states.items()}
    assert all(torch.equal(mean[name], states[name]) for name in states)


def test_uniform_networks_are_those_of_all_blocks():
    model, family = upstream("wav2vec2")
    block = {"target_sparsity": 0.3, "pinch": {"unit": "structured", "uniform": True}}
    for layers, left_out in ((r"layers\.0\.feed_forward", "layers.1"), (r"attention\.(.*)_proj", "layers.0")):
        method = build_method({**block, "layers": layers})
        with pytest.raises(ValueError, match=f"uniform: true prunes.* leaves out encoder.{left_out}.feed_forward"):
            method.attach(copy.deepcopy(model), total_steps=10, structure=family.structure(model))


def test_a_model_with_fewer_heads_is_no_longer_uniform():
    model, family = upstream("wav2vec2")
    family.cut(model, next(group for [group] in groups_of(model, family) if group.kind == "heads"), torch.tensor([0]))
    model.config.espnet_pinch_widths = {"encoder.layers.0.attention": 1}
    method = build_method({"target_sparsity": 0.3, "pinch": {"unit": "structured", "uniform": True}})
    with pytest.raises(ValueError, match="this one was cut in another way before"):
        method.attach(model, total_steps=10, structure=family.structure(model))


@pytest.mark.parametrize("broken", ["unknown head size", "odd head size", "shared keys"])
def test_an_attention_without_equal_heads_is_named(broken):
    model = nn.ModuleDict({"block": Block()})
    if broken == "unknown head size":
        del model["block"].attention.head_dim
    elif broken == "odd head size":
        model["block"].attention.head_dim = 4
    else:
        model["block"].attention.k_proj = nn.Linear(5, 3)
    method = build_method({"target_sparsity": 0.3, "layers": "proj|dense", "pinch": {"unit": "structured"}})
    with pytest.raises(ValueError, match="^block.attention has no units of one size in q_proj.*choose other layers"):
        method.attach(model, total_steps=10)


def test_a_target_of_0_prunes_nothing():
    model = nn.ModuleDict({"block": Block()})
    block = {"target_sparsity": 0.0, "layers": "proj|dense", "pinch": {"unit": "structured", "multiple": 1}}
    method = build_method(block)
    method.attach(model, total_steps=8)
    optimizer = torch.optim.SGD(method.parameter_groups(lr=0.1), lr=0.1)
    for _ in range(8):
        loss = model["block"](torch.randn(4, 5)).sum() + method.penalty()
        loss.backward()
        with torch.no_grad():  # as far as any training could take them
            for threshold in method.new_parameters():
                threshold.fill_(3.0)
        optimizer.step()
        optimizer.zero_grad()
        assert method.sparsity() == 0
    assert method.on_target() and not method.fold()


def test_wavlm_is_trained_with_masked_features():
    model, family = upstream("wavlm")
    model.config.mask_feature_prob, model.config.mask_feature_length = 0.3, 2
    speech, mask = torch.randn(2, 16000), torch.ones(2, 16000).long()
    frames = family.frames_of(model.config, mask.sum(1))
    family.hidden_states(model.train(), speech, mask, frames).sum().backward()


@pytest.mark.slow
def test_onnx_takes_wavlm_with_fewer_heads():
    model, family = upstream("wavlm")
    attention = next(group for [group] in groups_of(model, family) if group.kind == "heads")
    family.cut(model, attention, torch.tensor([0, 2, 3]))
    model.config.return_dict = False
    axes = {"input_values": {0: "batch", 1: "samples"}}
    program = torch.onnx.export(model, (torch.randn(2, 16000),), dynamo=True, dynamic_shapes=axes, verbose=False)
    speech = torch.randn(3, 9000)
    with torch.no_grad():
        torch.testing.assert_close(program(speech)[0], model(speech)[0], rtol=0, atol=1e-3)


def test_landing_is_exact_to_one_block_and_keeps_the_ratios():
    model, family = upstream("hubert")
    groups = groups_of(model, family, multiple=4)
    cost = weight_cost(model, groups)
    gates = gate_groups(model, groups)
    with torch.no_grad():
        for i, gate in enumerate(gates):
            gate.threshold.mul_(1 + i)
    for part in (0.9, 0.5, 0.25):
        land(gates, cost, 1 - part)
        widths = counts(gates)
        assert cost.of(widths) <= part * cost.full
        blocks = []  # the cost with one more block of a group
        for i, [group] in enumerate(groups):
            assert widths[i] % group.multiple == 0 or widths[i] == group.units
            blocks.append(cost.of([*widths[:i], min(widths[i] + group.multiple, group.units), *widths[i + 1 :]]))
        more = [cost_of for cost_of, left, [group] in zip(blocks, widths, groups) if left < group.units]
        assert min(more) > part * cost.full  # no block fits any more
    with pytest.raises(ValueError, match="with the fewest units it saves"):
        land(gates, cost, 0.9999)


def test_blocks_of_one_size_land_by_one_common_factor():
    model, family = upstream("hubert")
    groups = [[group] for [group] in groups_of(model, family) if group.kind == "channels"]
    cost, gates = weight_cost(model, groups), gate_groups(model, groups)
    with torch.no_grad():
        gates[1].threshold.mul_(1.1)
    land(gates, cost, 0.5)
    assert cost.of(counts(gates)) == 0.5 * cost.full
    assert float(gates[1].threshold / gates[0].threshold) == pytest.approx(1.1, rel=1e-5)


def test_the_gated_weights_are_counted_as_the_cut_model_has_them():
    model, family = upstream("wav2vec2")
    groups = groups_of(model, family)
    cost, names = weight_cost(model, groups), {part.layer for [group] in groups for part in group.parts}
    assert cost.full == sum(model.get_submodule(name).weight.numel() for name in names)
    gates = gate_groups(model, groups, 0.3)
    widths = counts(gates)
    take_gates(model, gates, family.structure(model))
    assert cost.of(widths) == sum(model.get_submodule(name).weight.numel() for name in names)


@pytest.mark.parametrize("large, count", [(False, 31), (True, 55)])
def test_thresholds_of_the_real_architectures(large, count):
    fields = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    config = HubertConfig(**(fields if large else {}), **({"feat_extract_norm": "layer"} if large else {}))
    with torch.device("meta"):
        model = HubertModel(config)
    family = find_family("hubert")
    pinch = build_method(
        {"target_sparsity": 0.5, "layers": family.layers, "pinch": {"unit": "structured", "conv": True}}
    )
    pinch.attach(model, structure=family.structure(model))
    assert [p.shape for p in pinch.new_parameters()] == [torch.Size([])] * count


@pytest.mark.parametrize("target", [n / 20 for n in range(1, 20)])
def test_a_target_that_a_width_meets_exactly_is_met_exactly(target):
    layers = {"intermediate_dense": nn.Linear(3, 20), "output_dense": nn.Linear(20, 5)}
    model = nn.ModuleDict({"net": nn.ModuleDict(layers)})
    groups = [find_groups(model, [f"net.{name}" for name in layers], TRANSFORMER_TIES)]
    cost, gates = weight_cost(model, groups), gate_groups(model, groups)
    land(gates, cost, target)
    assert cost.saved(counts(gates)) == target


def test_units_without_weights_go_first_and_a_target_is_met():
    model, family = upstream("hubert")
    groups = groups_of(model, family, multiple=4)
    network = next(group for [group] in groups if group.kind == "channels")
    with torch.no_grad():  # as NAS-CP leaves them
        model.get_submodule(network.parts[0].layer).weight[8:] = 0
        model.get_submodule(network.parts[1].layer).weight[:, 8:] = 0
    cost, gates = weight_cost(model, groups), gate_groups(model, groups)
    place = next(i for i, gate in enumerate(gates) if gate.groups[0] is network)
    for target in (0.7, 0.4, 0.1):
        land(gates, cost, target)
        assert all(gate.threshold > 0 for gate in gates)
        left = counts(gates)
        assert left[place] <= 8 and cost.saved(left) >= target
        assert cost.room(left, target) in ([], [place])  # no other block fits any more
