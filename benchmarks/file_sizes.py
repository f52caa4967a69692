"""Compare the bytes of sparse files, the seconds to load them, and an entropy bound; dense files for comparison.

Weights are random and pruned by magnitude to the same sparsity in every gated layer. "4 bits" is a quantised model: its
gated layers have 4 bits, its other weights 8. The bound counts n H(s) bits for the mask of n weights of sparsity s,
H(c) bits for every kept code, all else with its bytes, and the header with nothing.
"""

import gzip
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from measure import parser, print_table, rounds, start
from models import make_model, quantize
from safetensors.torch import save_file

from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.core.grids import TERNARY
from espnet_pinch.export.encoding import FLOATS, QUANTIZED
from espnet_pinch.export.load import load
from espnet_pinch.export.model import weights
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.inference.timing import in_turns

WIDTHS = {"8 bits": 8, "4 bits": 4, "3 bits": 3, "2 bits": 2, TERNARY: TERNARY}
DENSE = {"dense fp32": "fp32", "dense fp16": "fp16"}
FILES = [*DENSE, *FLOATS, "int8", *WIDTHS]
HEAD = ["sparsity %", "file", "bytes", "MB", "times smaller than dense", "entropy bound MB", "% over it", "load s"]


def gzipped(path: Path) -> int:
    """Bytes of a file after gzip, level 6."""
    with open(path, "rb") as source, tempfile.TemporaryFile() as target:
        with gzip.open(target, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(source, packed, 1 << 24)
        return target.tell()


def measure(file: str, model: PruningASRModel, args: Namespace) -> Iterator[list]:
    """Rows of one of the ``FILES``: name, bytes, and, where it is sparse, the bound and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        if file in DENSE:
            dtype = FLOATS[DENSE[file]]
            save_file({name: weight.to(dtype).contiguous() for name, weight in weights(model).items()}, path)
            yield [file, path.stat().st_size]
            yield [f"{file}, gzip -6", gzipped(path)]
        else:
            if file in WIDTHS:
                quantize(model, WIDTHS[file])
            figures = write_sparse(path, model, QUANTIZED if file in WIDTHS else file)
            seconds = in_turns({file: lambda: load(path)}, args.repeats, args.clock)[file]
            yield [file, figures["bytes"], figures["entropy_bound"], min(seconds)]


def table(args: Namespace) -> Iterator[list[str]]:
    for sparsity in args.sparsities:
        for file in args.files:
            model = make_model(args.size, sparsity)
            dense = 4 * sum(weight.numel() for weight in weights(model).values())
            for name, size, *rest in measure(file, model, args):
                row = [f"{100 * sparsity:g}", name, f"{size:,}", f"{size / 1e6:.2f}", f"{dense / size:.2f}"]
                if rest:
                    bound, seconds = rest
                    row += [f"{bound / 1e6:.2f}", f"{100 * (size / bound - 1):.1f}", f"{seconds:.2f}"]
                yield row + [""] * (len(HEAD) - len(row))


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--sparsities", type=float, nargs="+", default=[0.65, 0.85], help="of gated layers [0.65 0.85]")
    made.add_argument("--files", nargs="+", choices=FILES, default=FILES, help="what to write [all]")
    args = start(made, arguments)
    print(f"wav2vec2-{args.size}; loading: the best of {rounds(args)}.\n")
    print_table(HEAD, table(args))


if __name__ == "__main__":
    main()
