"""Time an unpruned model beside pruned ones in the runtimes that people use: torch, onnxruntime and OpenVINO.

One utterance at a time. The weights are random. ``--weights``: the smallest of every gated layer are 0. ``--macs``:
heads, channels and filters are cut; every unit is first multiplied with a random factor, so that the units of a group
differ in size, as those of a trained model do, and ``pinch`` with ``unit: structured`` and ``conv: true`` lands on
the target and is folded, as at the end of a run. ``--int8``: the ONNX file in 8 bits of the unpruned model, and of
those that were cut. The rest is ``espnet-pinch bench``, which also tells word error rates.
"""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from measure import parser, start
from models import TOKENS, make_model, prune

from espnet_pinch import Pinch
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.bench.report import to_markdown
from espnet_pinch.bench.run import Request, compare
from espnet_pinch.export.formats.onnx import export_model, write_files


@torch.no_grad()
def cut(dense: PruningASRModel, target: float, multiple: int) -> PruningASRModel:
    """A copy with the fraction ``target`` of the multiplications saved."""
    model = copy.deepcopy(dense)
    upstream, family = model.frontend.upstream, model.frontend.family
    pinch = Pinch(target_macs=target, layers=family.layers, unit="structured", conv=True, multiple=multiple)
    pinch.attach(upstream, total_steps=1, structure=family.structure(upstream))
    for gate in pinch.pinched.gates.values():
        factors = torch.randn(gate.groups[0].units).exp()
        for slices, weight in zip(gate.slices[0], gate.weights[0]):
            weight.mul_(slices.spread(factors, weight))
    pinch.land()
    family.record_widths(upstream.config, pinch.fold())
    return model


def save(folder: Path, model: PruningASRModel) -> Path:
    save_ctc_model(folder, model.frontend.upstream, model.ctc.ctc_lo, TOKENS, model.frontend.processing)
    return folder


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, nargs="+", default=[10], help="lengths of the audio [10]")
    made.add_argument("--weights", type=float, nargs="*", default=[0.65, 0.85], metavar="TARGET")
    made.add_argument("--macs", type=float, nargs="*", default=[0.5, 2 / 3], metavar="TARGET")
    made.add_argument("--multiple", type=int, default=8, help="of channels and filters [8]")
    made.add_argument("--int8", action="store_true")
    made.add_argument("--runtimes", nargs="+", default=["torch", "onnxruntime", "openvino"])
    made.add_argument("--dtypes", nargs="+", default=[], help="[all that a runtime has here]")
    args = start(made, arguments)
    dense = make_model(args.size)
    smaller = {f"{100 * target:.0f} % of MACs saved": cut(dense, target, args.multiple) for target in args.macs}
    with tempfile.TemporaryDirectory() as folder:
        place, paths, int8 = Path(folder) / args.size, [], []
        for name, model in {"unpruned": dense, **smaller}.items():
            paths.append(save(place / name, model))
            if args.int8:
                int8 += [paths[-1] / file for file in write_files(paths[-1], export_model(model), model, ("int8",))]
        paths += int8
        for target in args.weights:
            model = copy.deepcopy(dense)
            prune(model, target)
            paths.append(save(place / f"{100 * target:.0f} % of weights", model))
        request = Request(
            models=paths,
            runtimes=args.runtimes,
            dtypes=args.dtypes,
            batches=[1],
            seconds=args.seconds,
            repeats=args.repeats,
            threads=args.threads,
            clock=args.clock,
        )
        print(to_markdown(compare(request, lambda line: print(line, file=sys.stderr))))


if __name__ == "__main__":
    main()
