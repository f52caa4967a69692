"""Several processes, micro-batches and half precision: the gates learn what one process in float32 learns."""

from pathlib import Path

import pytest
import torch
from espnet2.torch_utils.recursive_op import recursive_average
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from espnet_pinch.core.mixed_bits import build_quantization
from espnet_pinch.core.registry import build_method

WORLD = 2
STEPS = 12
METHODS = {
    "pinch": {"target_sparsity": 0.5, "pinch": {"eta": 2e-3, "threshold_init": 0.05, "reach_by": 0.8}},
    "nas_cp": {"method": "nas_cp", "target_sparsity": 0.7, "nas_cp": {"eta": 2e-3}},
    "ump": {"method": "ump", "target_sparsity": 0.5},
}
QUANTIZE = {"4 bits": {"bits": 4}, "mixed bits": {"bits": "mixed", "average_bits": 2.5, "bits_weight": 0.1}}
METHODS.update({name: METHODS["pinch"] for name in QUANTIZE})


class Net(nn.Module):
    """A feed-forward network under a pruning method; returns the loss, penalty and all."""

    def __init__(self, block: dict, dtype=torch.float64, quantize: dict | None = None):
        super().__init__()
        layers = {"intermediate_dense": nn.Linear(12, 32), "output_dense": nn.Linear(32, 12)}
        self.layers = nn.ModuleDict(layers).to(dtype)
        self.pruning = build_method({"layers": "dense$", **block})
        self.pruning.attach(self, total_steps=STEPS)
        self.quantization = build_quantization(quantize)
        if self.quantization:
            self.quantization.attach(self, [f"layers.{name}" for name in layers], self.pruning)

    def parameter_groups(self, lr: float) -> list[dict]:
        groups = self.pruning.parameter_groups(lr)
        return self.quantization.parameter_groups(groups) if self.quantization else groups

    def forward(self, x):  # (B, 12) -> (1,)
        penalty = self.pruning.penalty() + (self.quantization.penalty() if self.quantization else 0.0)
        y = self.layers["output_dense"](self.layers["intermediate_dense"](x).relu())
        return ((y - x.flip(1)).square().mean() + penalty)[None]


def train(name: str, rank: int = 0, world: int = 1, accum: int = 1) -> dict:
    """Some steps on this rank's share of the batches, each in ``accum`` pieces, weighted as ESPnet's trainer does."""
    torch.manual_seed(0)
    net = Net(METHODS[name], quantize=QUANTIZE.get(name))
    method = net.pruning
    optimizer = torch.optim.SGD(net.parameter_groups(lr=0.3))
    wrapped = DistributedDataParallel(net) if world > 1 else net
    course = []
    torch.rand(rank)  # random states drift apart, as dropout on batches of other lengths makes them
    batches = torch.randn(STEPS, 14, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for batch in batches:
        for piece in batch.chunk(accum):
            share = piece[rank::world]  # 4 and 3 of 7: not the same everywhere
            loss = wrapped(share)
            if world > 1:
                weight = torch.tensor([len(share)])
                _, total = recursive_average({}, weight, True)
                loss = (loss * weight).sum() / total * world
            (loss / accum).backward()
        optimizer.step()
        optimizer.zero_grad()
        course.append(method.scalars())
    return {"state": {k: v.detach() for k, v in net.named_parameters()}, "course": course, "on": method.on_target()}


def in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    results = {(name, accum): train(name, rank, WORLD, accum) for name in METHODS for accum in (1, 2)}
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict]:
    """What each of two processes has come to, for every method and number of micro-batches."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(in_process, (folder,), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_close(state: dict, wanted: dict, atol=1e-5) -> None:
    assert state.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(state[name], wanted[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_what_one_learns_from_the_joined_batch(method, accum, by_rank):
    first, second = (results[method, accum] for results in by_rank)
    alone = train(method)
    assert_close(first["state"], second["state"], atol=0)
    assert first["course"] == second["course"]  # sparsity, tau and eta: the switch falls on the same step
    assert_close(first["state"], alone["state"])
    assert [s["sparsity"] for s in first["course"]] == pytest.approx([s["sparsity"] for s in alone["course"]], abs=1e-9)
    assert first["on"] and 0 <= first["course"][-1]["sparsity"] - METHODS[method]["target_sparsity"] < 0.03
    if method != "ump":
        etas = [s["eta"] for s in alone["course"]]
        assert etas[0] > 0 and etas[-1] == 0  # the switch is within the run


@pytest.mark.parametrize("accum", [2, 7])
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_add_up_to_the_batch(method, accum):
    assert_close(train(method, accum=accum)["state"], train(method)["state"])


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["pinch", "nas_cp"])
def test_in_half_precision_thresholds_get_their_unscaled_gradient(method, dtype, device):
    x = torch.randn(64, 12, device=device)

    def gradients(autocast: bool, penalty: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        block = METHODS[method]
        net = Net({**block, method: {**block[method], "eta": 2e-3 if penalty else 0.0}}, torch.float32).to(device)
        new = net.pruning.new_parameters()
        optimizer = torch.optim.SGD([{"params": list(net.parameters())}], lr=0.1)
        scaler = torch.amp.GradScaler(device, enabled=autocast)
        with torch.autocast(device, dtype=dtype, enabled=autocast):
            loss = net(x).sum()
        scaler.scale(loss).backward()
        scaled = new[0].grad.clone()
        scaler.unscale_(optimizer)
        if autocast:
            torch.testing.assert_close(scaled, new[0].grad * 65536.0)
        before = new[0].detach().clone()
        scaler.step(optimizer)
        assert net.pruning.step == 1
        torch.testing.assert_close(new[0].detach(), before - 0.1 * new[0].grad)
        return [p.grad.clone() for p in new]

    for penalty in (False, True):
        for half, full in zip(gradients(True, penalty), gradients(False, penalty)):
            assert half.dtype == torch.float32 and full.abs().max() > 0
            tolerance = 4e-3 if dtype == torch.float16 else 3e-2
            torch.testing.assert_close(half, full, rtol=tolerance, atol=tolerance * float(full.abs().max()))


def test_a_step_that_the_scaler_skips_does_not_count():
    net = Net(METHODS["pinch"], torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = {k: v.clone() for k, v in net.state_dict().items() if "extra" not in k}
    scaler.scale(net(torch.full((2, 12), torch.inf)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert net.pruning.step == 0 and scaler.get_scale() == 32768
    assert all(torch.equal(net.state_dict()[k], before[k]) for k in before)
