"""Time the ONNX file in 8 bits beside the one in float32, in onnxruntime and OpenVINO: size, load time, memory, speed.

One utterance at a time, of a model with random weights. The rest is ``espnet-pinch bench``, which also tells the word
error rates of the two files of an export.
"""

import sys
import tempfile
from pathlib import Path

from measure import parser, start
from models import make_model

from espnet_pinch.bench.report import to_markdown
from espnet_pinch.bench.run import Request, compare
from espnet_pinch.export.formats.onnx import FILES, export_model, write_files


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, nargs="+", default=[10], help="lengths of the audio [10]")
    made.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    made.add_argument("--dtypes", nargs="+", default=[], help="[all that a runtime has here]")
    args = start(made, arguments)
    model = make_model(args.size)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), export_model(model), model, tuple(FILES))
        request = Request(
            models=[Path(folder) / name for name in files],
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
