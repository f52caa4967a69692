"""Can sparse products make a whole pruned model 1.5 times as fast as the unpruned one in the best float32 runtime?

All sides take turns in one run: the unpruned model in onnxruntime and OpenVINO, the pruned one with our sparse
products, and its two largest parts by themselves, each at its best. These are the convolutions in the fastest runtime,
and the products of all gated layers. Their sum is less than any program can take that computes both this way.
"""

import tempfile
from pathlib import Path

import onnxruntime
import openvino
import torch
from measure import parser, print_table, rounds, start
from models import make_model
from torch import Tensor, nn

from espnet_pinch.export.formats.onnx import write_onnx
from espnet_pinch.inference.sparse_linear import SparseLinear, use_backend
from espnet_pinch.inference.timing import in_turns


class Front(nn.Module):
    """All of an upstream that is before its Transformer blocks."""

    def __init__(self, upstream: nn.Module):
        super().__init__()
        self.upstream = upstream

    def forward(self, speech: Tensor) -> Tensor:
        hidden, _ = self.upstream.feature_projection(self.upstream.feature_extractor(speech).transpose(1, 2))
        return hidden + self.upstream.encoder.pos_conv_embed(hidden)


def runtimes(path: Path, threads: int, inputs: list) -> dict:
    """``{runtime: call}`` of an ONNX file in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    named = dict(zip([one.name for one in session.get_inputs()], inputs))
    return {"onnxruntime": lambda: session.run(None, named), "OpenVINO": lambda: compiled(inputs)}


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=int, default=10, help="length of the audio [10]")
    made.add_argument("--sparsity", type=float, default=0.85)
    args = start(made, arguments)
    samples = args.seconds * 16000
    speech, lengths = torch.randn(1, samples), torch.tensor([samples])
    model = make_model(args.size)
    front = Front(model.frontend.upstream).eval()
    pruned = make_model(args.size, args.sparsity)
    use_backend(pruned.frontend.upstream, "sparse")
    layers = [layer for layer in pruned.frontend.upstream.modules() if isinstance(layer, SparseLinear)]
    frames = int(model.frontend.family.frames_of(model.frontend.upstream.config, lengths))
    hidden = {layer.in_features: torch.randn(frames, layer.in_features) for layer in layers}
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        whole, part = Path(folder) / "whole.onnx", Path(folder) / "front.onnx"
        write_onnx(whole, model)
        torch.onnx.export(front, (speech,), part, dynamo=True, verbose=False)
        unpruned = runtimes(whole, args.threads, [speech.numpy(), lengths.numpy()])
        alone = runtimes(part, args.threads, [speech.numpy()])
    sides = {f"unpruned, {name}": call for name, call in unpruned.items()}
    sides["pruned, sparse products in torch"] = lambda: pruned.frontend(speech, lengths)
    sides |= {f"convolutions alone, {name}": call for name, call in alone.items()}
    sides["sparse products alone"] = lambda: [layer(hidden[layer.in_features]) for layer in layers]
    best = {name: min(taken) for name, taken in in_turns(sides, args.repeats, args.clock).items()}
    fastest = min(seconds for name, seconds in best.items() if name.startswith("unpruned"))
    parts = min(seconds for name, seconds in best.items() if name.startswith("convolutions"))
    best["the two parts together"] = parts + best["sparse products alone"]
    print(f"wav2vec2-{args.size}, {args.seconds} s of audio, {100 * args.sparsity:g} %, {rounds(args)}:\n")
    rows = [[name, f"{seconds:.3f}", f"{fastest / seconds:.2f}"] for name, seconds in best.items()]
    print_table(["", "min s", "times as fast as the fastest unpruned"], rows)


if __name__ == "__main__":
    main()
