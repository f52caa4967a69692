"""The paper's other methods on whole models: uniform and mixed magnitude pruning, NAS-CP and its folding."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from espnet_pinch.asr.family import find_family
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.channels import compact, find_channels, make_room
from espnet_pinch.core.methods.nas_cp import ChannelGate
from espnet_pinch.core.registry import all_methods, build_method
from espnet_pinch.errors import UserError

UPSTREAMS = [
    (Wav2Vec2Config, Wav2Vec2Model, {}, None),
    (HubertConfig, HubertModel, {}, None),
    (WavLMConfig, WavLMModel, {}, None),
    (Data2VecAudioConfig, Data2VecAudioModel, {}, None),
    (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel, {"position_embeddings_type": "rotary"}, None),
    (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel, {}, r"\.ffn[12]\."),
]
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def tiny_model(tiny_config, config_class=Wav2Vec2Config, model_class=Wav2Vec2Model):
    model = model_class(config_class(**tiny_config)).train()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)  # a bias that is left behind is to be seen
    return model


def attach(model, **block):
    family = find_family(model.config.model_type)
    method = build_method({"layers": family.layers, **block})
    method.attach(model, structure=family.structure(model))
    return method


def train(model, method, steps, total=None, lr=3e-3, **options):
    method.total_steps = total or steps
    optimizer = torch.optim.AdamW(method.parameter_groups(lr, **options), lr=lr)
    course = []
    for _ in range(steps):
        loss = method.penalty() + model(torch.randn(2, 4800)).last_hidden_state.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        course.append(method.sparsity())
    return course


def test_every_method_of_the_paper_is_there():
    assert list(all_methods())[:2] == ["dense", "pinch"]
    assert {"mixed_sparsity", "nas_cp", "ump"} <= set(all_methods())


def test_ump_prunes_the_smallest_of_every_layer_and_they_stay_pruned(tiny_config):
    model = tiny_model(tiny_config)
    before = {name: linear.weight.clone() for name, linear in find_linears(model).items()}
    method = attach(model, method="ump", target_sparsity=0.7)
    for name, linear in find_linears(model).items():
        size, pruned = linear.weight.numel(), linear.weight == 0
        assert int(pruned.sum()) == -(-7 * size // 10)  # no more than rounding needs
        assert before[name].abs()[pruned].max() <= before[name].abs()[~pruned].min()
        assert torch.equal(linear.weight[~pruned], before[name][~pruned])
    zeros = {name: linear.weight == 0 for name, linear in find_linears(model).items()}
    course = train(model, method, 10, weight_decay=0.1)
    assert method.on_target() and len(set(course)) == 1
    for name, linear in find_linears(model).items():
        assert torch.equal(linear.weight == 0, zeros[name])
        assert not torch.equal(linear.weight[~zeros[name]], before[name][~zeros[name]])


def test_mixed_sparsity_takes_the_layers_of_a_finished_run(tiny_config, tmp_path):
    found = attach(tiny_model(tiny_config), target_sparsity=0.7, pinch={"eta": 1e-4})
    train_model = tiny_model(tiny_config)
    found = attach(train_model, target_sparsity=0.7, pinch={"eta": 1e-4})
    train(train_model, found, 20)
    wanted = found.layer_sparsity()
    assert max(wanted.values()) - min(wanted.values()) > 0.05
    layers = {name: {"weights": 10**6, "pruned": round(10**6 * s)} for name, s in wanted.items()}
    (tmp_path / "folded").mkdir()
    (tmp_path / "folded" / "parameters.json").write_text(json.dumps({"layers": layers}))
    model = tiny_model(tiny_config)
    method = attach(
        model, method="mixed_sparsity", target_sparsity=0.7, mixed_sparsity={"layer_sparsities": str(tmp_path)}
    )
    for name, linear in find_linears(model).items():
        assert float((linear.weight == 0).float().mean()) == pytest.approx(wanted[name], abs=1 / 256)
    assert method.on_target()

    def refused(message, **changes):
        block = {"method": "mixed_sparsity", "target_sparsity": 0.7, "mixed_sparsity": {"layer_sparsities": wanted}}
        with pytest.raises(ValueError, match=message):
            attach(tiny_model(tiny_config), **{**block, **changes})

    refused("give 0.70.. over all layers, but target_sparsity is 0.6", target_sparsity=0.6)
    refused("to another model", mixed_sparsity={"layer_sparsities": {"encoder.layers.0.attention.q_proj": 0.7}})
    with pytest.raises(FileNotFoundError, match="finish the pinch run"):
        build_method({"method": "mixed_sparsity", "mixed_sparsity": {"layer_sparsities": "none"}})
    (tmp_path / "folded" / "parameters.json").write_text("[]")
    refused("is not the parameters.json", mixed_sparsity={"layer_sparsities": str(tmp_path)})


def test_channels_are_tied_in_both_networks_of_a_block(tiny_config):
    groups = find_channels(find_linears(tiny_model(tiny_config)))
    assert [len(group.members) for group in groups] == [4, 2, 4, 2]
    assert groups[0].column == "encoder.layers.0.attention.out_proj"
    with pytest.raises(ValueError, match="must be gated together.*k_proj breaks this rule"):
        attach(tiny_model(tiny_config), method="nas_cp", layers="q_proj")


def test_a_channel_gate_mixes_candidate_masks_and_carries_gradients_to_its_weights():
    gate = ChannelGate(nn.Linear(5, 8), columns=False)
    assert gate.removed == [0, 2, 4, 6, 7, 8, 8]  # rounded up
    ranks = torch.arange(8)
    gate.mixture = gate.mix(torch.softmax(gate.architecture, 0), ranks)
    x = torch.randn(3, 5)
    masks = [(ranks >= removed).float()[:, None] for removed in gate.removed]
    expected = sum(x @ (mask * gate.weight_orig).T / 7 for mask in masks)
    expected = expected + sum(mask[:, 0] for mask in masks) / 7 * gate.bias_orig
    torch.testing.assert_close(gate.train()(x), expected)
    gate(x).square().sum().backward()
    assert gate.architecture.grad.abs().max() > 0 and gate.weight_orig.grad.abs().max() > 0
    torch.testing.assert_close(gate.eval()(x), x @ gate.weight_orig.T + gate.bias_orig)  # nothing chosen yet


@pytest.mark.parametrize("target", [0.5, 0.65, 0.8, 0.9, 0.925])
def test_nas_cp_ends_on_the_target_to_one_channel(target, tiny_config):
    tiny_config.update(hidden_size=48, intermediate_size=160)
    model = tiny_model(tiny_config)
    method = attach(model, method="nas_cp", target_sparsity=target, nas_cp={"eta": 1e-4, "architecture_lr": 0.1})
    course = train(model, method, 20)
    total, channel = sum(gate.weight_orig.numel() for gate in method.gates.values()), 2 * 48  # of a pair of layers
    assert method.chosen and target <= course[-1] <= target + channel / total
    assert len({gate.kept.sum().item() for gate in method.gates.values()}) > 1 or target == 0.925
    assert set(course[9:]) == {course[-1]}  # chosen at half of the run, and kept
    for group in find_channels(method.gates):
        for one, other in group.pairs:  # no layer keeps what its partner has made useless
            assert torch.equal(method.gates[one].kept, method.gates[other].kept)


@pytest.mark.parametrize("config_class, model_class, fields, layers", UPSTREAMS)
def test_nas_cp_folds_to_smaller_matrices_of_the_same_function(config_class, model_class, fields, layers, tiny_config):
    layers = {"layers": layers} if layers else {}
    model = tiny_model({**tiny_config, **fields}, config_class, model_class)
    empty = copy.deepcopy(model).eval()
    method = attach(model, method="nas_cp", target_sparsity=0.6, nas_cp={"architecture_lr": 0.1}, **layers)
    names, ties = list(method.gates), method.structure.ties
    train(model, method, 12)
    model.eval()
    audio = torch.randn(2, 3200)
    masked = model(audio).last_hidden_state
    method.fold()
    torch.testing.assert_close(model(audio).last_hidden_state, masked, rtol=0, atol=0)
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in names)
    whole = sum(p.numel() for p in model.parameters())
    left = {name: len(places) for name, places in compact(model, names, ties).items()}
    torch.testing.assert_close(model(audio).last_hidden_state, masked, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < whole - zeros  # the biases of removed rows go too
    make_room(empty, left, ties)
    empty.load_state_dict(model.state_dict())
    torch.testing.assert_close(empty(audio).last_hidden_state, masked, rtol=0, atol=1e-5)


def test_nas_cp_refuses_an_attention_in_which_a_channel_of_q_counts_without_that_of_k(tiny_config):
    model = tiny_model(tiny_config, Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel)  # relative positions
    message = r"\(intermediate_dense and output_dense\) must be gated together.*layers.0.self_attn.linear_q breaks"
    with pytest.raises(UserError, match=message):
        attach(model, method="nas_cp", target_sparsity=0.6)
    with pytest.raises(UserError, match="linear_q has been made smaller, but it shares its channels with no other"):
        attach(model, method="dense", dense={"channels": {"encoder.layers.0.self_attn.linear_q": 3}})


def test_nas_cp_resumes_its_search_and_its_choice(tiny_config):
    for steps in (4, 12):  # before and after the choice
        model = tiny_model(tiny_config)
        method = attach(model, method="nas_cp", target_sparsity=0.6)
        model.add_module("pruning", method)
        train(model, method, steps, total=20)
        assert method.chosen == (steps == 12)
        other_model = tiny_model(tiny_config)
        other = attach(other_model, method="nas_cp", target_sparsity=0.6)
        other_model.add_module("pruning", other)
        other_model.load_state_dict(model.state_dict())
        other.total_steps = 20
        assert (other.step, other.chosen, other.tau, other.eta) == (method.step, method.chosen, method.tau, method.eta)
        audio = torch.randn(1, 4800)
        torch.testing.assert_close(
            other_model.eval()(audio).last_hidden_state, model.eval()(audio).last_hidden_state, rtol=0, atol=0
        )


def test_the_mean_of_nas_cp_checkpoints_keeps_the_choice(tiny_config):
    model = tiny_model(tiny_config)
    method = attach(model, method="nas_cp", target_sparsity=0.6)
    train(model, method, 8, total=10)
    sparsity = method.sparsity()
    states = [{k: v.clone() for k, v in model.state_dict().items()}]
    train(model, method, 2, total=10)
    states.append(model.state_dict())
    model.load_state_dict({k: (states[0][k] + states[1][k]) / 2 for k in states[0]})
    method.land()
    assert method.sparsity() == sparsity
    model.load_state_dict({k: v + 0.5 * (1 - v) if k.endswith("kept") else v for k, v in states[0].items()})
    method.land()  # one of two had not chosen yet
    assert method.sparsity() == sparsity
