"""Count the parameters of an upstream at given sparsities, by the paper's rules (next to its figures) and by ours.

The architecture is built without weights: nothing is downloaded, and little memory is needed.
"""

import argparse

from espnet_pinch.asr.architectures import CONFIGS
from espnet_pinch.bin import run_main
from espnet_pinch.core.registry import all_methods, find_method
from espnet_pinch.files import write_json
from espnet_pinch.results.accounting import account, two_decimals

# Title of each column, and its cells. M: million parameters; x: compression ratio.
COLUMNS = {
    "%": lambda row: f"{100 * row['sparsity']:g}",
    "weights M": lambda row: two_decimals(row["paper_weights"]),
    "+biases M": lambda row: two_decimals(row["paper_weights_and_biases"]),
    "paper's M": lambda row: figure(row["paper_m"]),
    "printed M": lambda row: figure(row["published_m"]),
    "paper's x": lambda row: figure(row["paper_ratio"]),
    "printed x": lambda row: figure(row["published_ratio"]),
    "kept": lambda row: f"{row['kept']:,}",
    "kept x": lambda row: figure(row["ratio"]),
    "Mbit": lambda row: figure(row["bits"] / 1e6),
    "Mbit x": lambda row: figure(row["ratio_bits"]),
}


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table with aligned columns."""
    cells = [list(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths))} |" for line in cells]
    return [lines[0], f"|{'|'.join('-' * (width + 1) + ':' for width in widths)}|", *lines[1:]]


def legend(counts: dict) -> list[str]:
    """Lines that explain the columns, for below the table."""
    lines = [
        "weights M, +biases M: total - sparsity x the weights, or the weights and biases, of the gated linear layers.",
    ]
    if counts["pretraining"] is not None:
        which = "+biases M" if counts["paper_prunes_biases"] else "weights M"
        cut, rounded = (two_decimals(counts["pretraining"], cut) for cut in (True, False))
        lines += [
            f"paper's M: the rule that gives the printed figures; the paper states none. Here {which}: weights for",
            "  base models, weights and biases for the large one. At 0 % it is another model, with pre-training heads",
            f"  and no CTC head: {counts['pretraining']:,} = {rounded} M. We assume that it is cut to {cut}, not",
            "  rounded, because the large model's figure needs that.",
            "paper's x: that other model / paper's M. Only kept x compares one model before and after pruning.",
        ]
    return [
        *lines,
        "kept, kept x: our rule. Total - pruned weights, all biases are kept; total / kept.",
        "Mbit, Mbit x: 32 bits for every kept parameter and, if weights are pruned, 1 for every gated weight, kept or",
        "  not; 32 x total / bits. Whole channels (nas_cp) need no such mask.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.count_params", description=__doc__)
    parser.add_argument("--upstream", required=True, help=f"{', '.join(CONFIGS)}, or a Hugging Face folder")
    parser.add_argument("--sparsity", nargs="+", help="fractions, such as 0.65 [the paper's rows]")
    parser.add_argument("--method", help="print its number of extra trained parameters [every method]")
    parser.add_argument("--json", help="write all counts to this file too")
    args = parser.parse_args()
    methods = list(all_methods()) if args.method is None else [find_method(args.method).name]
    counts = account(args.upstream, args.sparsity and [number(text) for text in args.sparsity])
    extra = [f"{name} {count}" for name, count in counts["extra_parameters"].items() if name.split(" ")[0] in methods]
    print(
        f"{counts['upstream']}: {counts['total']:,} parameters with a CTC head of {counts['tokens']} tokens; "
        f"{counts['linears']} gated linear layers with {counts['weights']:,} weights and {counts['biases']:,} biases",
        f"extra trained parameters: {', '.join(extra)}",
        *table(counts["rows"]),
        *legend(counts),
        sep="\n",
    )
    if args.json:
        write_json(args.json, counts)


def number(text: str) -> float | str:
    """``text`` as a number, or unchanged if it is none, so that ``account`` refuses it."""
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    run_main(main)
