"""``espnet-pinch info``: what is in a model."""

import argparse
import json
from pathlib import Path

import espnet_pinch
from espnet_pinch.asr.head import find_head
from espnet_pinch.commands.shared import quiet
from espnet_pinch.export.format import loadable


def add(commands) -> None:
    command = commands.add_parser("info", help="sparsity, sizes, layers", description="Sparsity, sizes and layers.")
    command.set_defaults(run=info)
    command.add_argument("model", type=Path, metavar="MODEL", help=loadable())
    command.add_argument("--format", choices=("text", "json"), default="text")


def info(args: argparse.Namespace) -> None:
    """Print the sparsity, the sizes and the gated layers of a model.

    Args:
        args: ``model``, ``format``. JSON has sizes in bytes and numbers of parameters and weights.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.load``.
    """
    with quiet():
        model = espnet_pinch.load(args.model)
    from espnet_pinch.export.load import locate
    from espnet_pinch.export.model import count_layers

    fmt, found = locate(args.model)
    files = fmt.weight_files(found)
    layers = count_layers(model)
    gated, pruned = (sum(layer[key] for layer in layers.values()) for key in ("weights", "pruned"))
    total = sum(p.numel() for p in model.parameters())
    own = fmt.info(found)
    figures = {
        "model": str(args.model),
        "kind": fmt.title,
        "upstream": model.frontend.upstream.config.model_type,
        "task": model.task,
        model.kind.outputs: len(model.token_list),
        "files": [str(file) for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "dense_bytes": 4 * total,
        "params_total": total,
        "params_kept": total - pruned,
        "gated": gated,
        "pruned": pruned,
        "sparsity": pruned / gated if gated else 0.0,
        **own,
        "layers": layers,
    }
    if args.format == "json":
        print(json.dumps(figures, indent=2))
    else:
        print("\n".join([*info_lines(figures), *fmt.info_lines(own), *fmt.layer_lines(layers, own)]))


def info_lines(figures: dict) -> list[str]:
    """The first lines of ``info``, on the whole model.

    Args:
        figures: what ``info`` prints as JSON.
    """
    outputs = find_head(figures["task"]).outputs
    return [
        f"{figures['model']}: {figures['kind']}, {figures['upstream']}, {figures[outputs]} {outputs}",
        f"sparsity     {100 * figures['sparsity']:.2f} % ({figures['pruned']:,} of {figures['gated']:,} gated weights)",
        f"parameters   {figures['params_kept']:,} of {figures['params_total']:,} kept",
        f"size         {figures['bytes'] / 1e6:.2f} MB; all weights as float32: {figures['dense_bytes'] / 1e6:.2f} MB",
    ]
