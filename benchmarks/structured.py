"""Time models whose heads, channels and filters were cut beside the unpruned one: torch, onnxruntime and OpenVINO.

One utterance at a time. The weights are random, every unit's times a random factor, so that the units of a group differ
in size, as those of a trained model do. ``pinch`` with ``unit: structured`` and ``conv: true`` lands on the target and
is folded, as at the end of a run. The rest is ``espnet-pinch bench``.
"""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from measure import parser, start
from models import TOKENS, make_model

from espnet_pinch import Pinch
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.bench.report import to_markdown
from espnet_pinch.bench.run import Request, compare


@torch.no_grad()
def cut_model(dense: PruningASRModel, target: float) -> PruningASRModel:
    """A copy with the fraction ``target`` of the multiplications saved."""
    model = copy.deepcopy(dense)
    upstream, family = model.frontend.upstream, model.frontend.family
    pinch = Pinch(target_macs=target, layers=family.layers, unit="structured", conv=True)
    pinch.attach(upstream, total_steps=1, structure=family.structure(upstream))
    for gate in pinch.pinched.gates.values():
        factors = torch.randn(gate.groups[0].units).exp()
        for slices, weight in zip(gate.slices[0], gate.weights[0]):
            weight.mul_(slices.spread(factors, weight))
    pinch.land()
    family.record_widths(upstream.config, pinch.fold())
    return model


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=10, help="length of the audio [10]")
    made.add_argument("--targets", type=float, nargs="+", default=[0.5, 2 / 3], metavar="TARGET")
    made.add_argument("--runtimes", nargs="+", default=["torch", "onnxruntime", "openvino"])
    made.add_argument("--dtypes", nargs="+", default=[], help="[all that a runtime has here]")
    args = start(made, arguments)
    dense = make_model(args.size)
    models = {"unpruned": dense, **{f"{100 * t:.0f} % of MACs saved": cut_model(dense, t) for t in args.targets}}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            place = Path(folder) / name
            save_ctc_model(place, model.frontend.upstream, model.ctc.ctc_lo, TOKENS, model.frontend.processing)
        request = Request(
            models=[Path(folder) / name for name in models],
            runtimes=args.runtimes,
            dtypes=args.dtypes,
            batches=[1],
            seconds=[args.seconds],
            repeats=args.repeats,
            threads=args.threads,
            clock=args.clock,
        )
        print(to_markdown(compare(request, lambda line: print(line, file=sys.stderr))))


if __name__ == "__main__":
    main()
