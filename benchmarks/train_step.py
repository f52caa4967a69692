"""Cost of a gate in a training step: time and peak memory, compared with dense fine-tuning and other pruning methods.

A step is that of the recipe: forward pass, CTC loss, backward pass, gradient clipping, AdamW, and what the method
does after it. The convolutional feature extractor is frozen. Every side has its own model, and the sides take turns:
pinch with its penalty (target not reached); pinch held on its target after every step; whole units, before and after
the target is reached; several targets in one run, all reached; pinch on its target with weights of 4 bits, of one sign,
or of mixed bits; distillation; a straight-through gate in plain autograd; hard-concrete gates (L0, one for every
weight); the fixed masks of torch.nn.utils.prune. Levels of bits are fitted anew in every 20th step alone, so the median
does not see that.
"""

import copy
import functools
import statistics

import torch
from measure import SIZES, parser, peak_bytes, print_table, rounds, start
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from espnet_pinch import Pinch
from espnet_pinch.asr.distill import divergence
from espnet_pinch.asr.family import find_family
from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.mixed_bits import build_quantization
from espnet_pinch.inference.timing import in_turns, ratio

ETA, TARGET = 3e-5, 0.65
TARGETS = [0.5, 0.65, 0.75, 0.85, 0.9]


class PlainGate(nn.Module):
    """The gate of pinch in plain autograd, with a straight-through mask."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear, self.threshold, self.tau = linear, nn.Parameter(torch.tensor(1e-5)), 0.5

    def forward(self, x):
        distance = self.linear.weight**2 - self.threshold**2
        soft = torch.sigmoid(distance / self.tau)
        mask = soft + ((distance >= 0).float() - soft).detach()
        self.kept = mask.sum()
        return F.linear(x, self.linear.weight * mask, self.linear.bias)


class HardConcrete(nn.Module):
    """A stochastic gate for every weight (Louizos et al., arXiv 1712.01312): beta 2/3, gamma -0.1, zeta 1.1."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear, self.log_alpha = linear, nn.Parameter(torch.full_like(linear.weight, 2.0))

    def forward(self, x):
        noise = torch.empty_like(self.log_alpha).uniform_(1e-6, 1 - 1e-6).logit()
        mask = (torch.sigmoid((noise + self.log_alpha) * 1.5) * 1.2 - 0.1).clamp(0, 1)
        self.kept = torch.sigmoid(self.log_alpha + 2 / 3 * 2.398).sum()
        return F.linear(x, self.linear.weight * mask, self.linear.bias)


class Dense:
    """A model and its training step."""

    def __init__(self, args):
        config = Wav2Vec2Config(**SIZES[args.size], vocab_size=32, apply_spec_augment=False, layerdrop=0.0)
        self.model = Wav2Vec2ForCTC(config).train()
        self.model.freeze_feature_encoder()
        self.attach()
        self.model.to(args.device)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        generator = torch.Generator().manual_seed(0)
        speech = torch.randn(args.batch, int(args.seconds * 16000), generator=generator)
        labels = torch.randint(1, 32, (args.batch, int(8 * args.seconds)), generator=generator)
        self.batch = {"input_values": speech.to(args.device), "labels": labels.to(args.device)}
        self.step()  # creates the optimizer's moments, which later steps use

    def attach(self) -> None:
        """Put gates into the model."""

    def loss(self):
        return self.model(**self.batch).loss

    def step(self) -> None:
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def held(self) -> int:
        """Bytes of the tensors that stay from one step to the next."""
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *moments, *self.batch.values()]
        return sum(t.nbytes for t in tensors)


class Pinched(Dense):
    """Args: as ``Dense``; whether the target is reached; settings of pinch; of the bits."""

    def __init__(self, args, landed: bool, quantize: dict | None = None, **settings):
        self.landed, self.quantization = landed, build_quantization(quantize)
        self.settings = {"target_sparsity": TARGET, "eta": ETA, **settings}
        super().__init__(args)

    def attach(self):
        upstream, self.pinch = self.model.wav2vec2, Pinch(**self.settings)
        names = list(find_linears(upstream))
        self.pinch.attach(upstream, total_steps=10**6, structure=find_family("wav2vec2").structure(upstream))
        if self.landed:
            self.pinch.land()
        if self.quantization:
            self.quantization.attach(upstream, names, self.pinch)
            self.quantization.fit()

    def loss(self):
        penalty = self.pinch.penalty() + (self.quantization.penalty() if self.quantization else 0.0)
        return penalty + super().loss()


class Distilled(Dense):
    def attach(self):
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def loss(self):
        with torch.no_grad():
            wanted = self.teacher.to(self.model.device)(self.batch["input_values"]).logits
        output = self.model(**self.batch)
        frames = torch.full((len(wanted),), wanted.shape[1], device=wanted.device)
        return output.loss + 0.3 * divergence(output.logits, wanted, frames, 1.0)

    def held(self):
        return super().held() + sum(p.nbytes for p in self.teacher.parameters())


class Gated(Dense):
    def __init__(self, args, gate: type[nn.Module]):
        self.gate = gate
        super().__init__(args)

    def attach(self):
        self.gates = []
        for name, linear in find_linears(self.model).items():
            self.gates.append(self.gate(linear))
            replace_module(self.model, name, self.gates[-1])

    def loss(self):
        return super().loss() + ETA * sum(gate.kept for gate in self.gates)


class FixedMask(Dense):
    def attach(self):
        for linear in find_linears(self.model).values():
            prune.l1_unstructured(linear, "weight", TARGET)


SIDES = {
    "dense": Dense,
    "pinch-penalty": functools.partial(Pinched, landed=False),
    "pinch-on-target": functools.partial(Pinched, landed=True),
    "units-penalty": functools.partial(Pinched, landed=False, unit="structured"),
    "units-on-target": functools.partial(Pinched, landed=True, unit="structured"),
    "5-targets": functools.partial(Pinched, landed=True, target_sparsity=TARGETS),
    "4-bit": functools.partial(Pinched, landed=True, quantize={"bits": 4}),
    "ternary": functools.partial(Pinched, landed=True, quantize={"bits": "ternary"}),
    "mixed-bit": functools.partial(Pinched, landed=True, quantize={"bits": "mixed", "average_bits": 3.5}),
    "distill": Distilled,
    "autograd-gate": functools.partial(Gated, gate=PlainGate),
    "l0": functools.partial(Gated, gate=HardConcrete),
    "torch-prune": FixedMask,
}


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=4, help="number of utterances [4]")
    made.add_argument("--seconds", type=float, default=10, help="length of each utterance [10]")
    made.add_argument("--sides", nargs="+", choices=list(SIDES)[1:], default=list(SIDES)[1:], help="with dense [all]")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = start(made, arguments)
    sides = {name: SIDES[name](args) for name in ["dense", *args.sides]}
    peak = {name: peak_bytes(side.step, args.device, side.held()) for name, side in sides.items()}  # also a warm-up
    seconds = in_turns({name: side.step for name, side in sides.items()}, args.repeats, args.clock, warm_up=0)
    rows = []
    for name, taken in seconds.items():
        times = [min(taken), statistics.median(taken), ratio(taken, seconds["dense"])]
        memory = [f"{peak[name] / 1e6:.0f}", f"{peak[name] / peak['dense']:.3f}"]
        rows.append([name, *(f"{t:.3f}" for t in times), *memory])
    print(f"wav2vec2-{args.size}, {args.batch} x {args.seconds:g} s, float32, {args.device}, {rounds(args)}:\n")
    print_table(["step", "min s", "median s", "times dense", "peak MB", "times dense"], rows)


if __name__ == "__main__":
    main()
