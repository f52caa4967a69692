"""Compare the bytes of exported files: sparse, dense, dense and gzipped, and an entropy bound.

Weights are random and pruned by magnitude to the same sparsity in every gated layer. The bound is the size of a sparse
file if its masks took only their entropy, n H(s) bits for n weights of sparsity s, and its header nothing.
"""

import gzip
import shutil
import tempfile
import time
from pathlib import Path

import torch
from measure import parser, print_table, start
from models import make_model
from safetensors.torch import save_file

from espnet_pinch.export.encoding import VALUES
from espnet_pinch.export.load import load
from espnet_pinch.export.model import weights
from espnet_pinch.export.sparse_file import write_sparse


def gzipped(path: Path) -> int:
    """Bytes of a file after gzip, level 6."""
    with open(path, "rb") as source, tempfile.TemporaryFile() as target:
        with gzip.open(target, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(source, packed, 1 << 24)
        return target.tell()


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--sparsity", type=float, default=0.85, help="of every gated layer [0.85]")
    args = start(made, arguments)
    model = make_model(args.size, args.sparsity)
    rows = []

    def add(name: str, size: int, bound: int | None = None, seconds: float | None = None) -> None:
        smaller = [f"{size:,}", f"{size / 1e6:.2f}", f"{dense / size:.2f}"]
        rows.append([name, *smaller, f"{bound / 1e6:.2f}" if bound else "", f"{seconds:.2f}" if seconds else ""])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights(model).items()}, path)
        dense = path.stat().st_size
        add("dense fp32", dense)
        add("dense fp32, gzip -6", gzipped(path))
        save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in weights(model).items()}, path)
        add("dense fp16", path.stat().st_size)
        add("dense fp16, gzip -6", gzipped(path))
        for values in VALUES[:-1]:  # none is quantized
            figures = write_sparse(path, model, values)
            begin = time.perf_counter()
            load(path)
            add(f"sparse {values}", figures["bytes"], figures["entropy_bound"], time.perf_counter() - begin)
    print(f"wav2vec2-{args.size}, {100 * args.sparsity:g} % of the gated weights are zero:\n")
    print_table(["file", "bytes", "MB", "times smaller than dense fp32", "entropy bound MB", "load s"], rows)


if __name__ == "__main__":
    main()
