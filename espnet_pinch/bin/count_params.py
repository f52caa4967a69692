"""Count the parameters of an upstream at given sparsities: by the paper's rules, beside its figures, and by ours.

The architecture is built without values: nothing is downloaded, and no memory is needed.
"""

import argparse

from espnet_pinch.asr.architectures import CONFIGS
from espnet_pinch.bin import run_main
from espnet_pinch.core.registry import all_methods, find_method
from espnet_pinch.files import write_json
from espnet_pinch.results.accounting import account, two_decimals

# Title of each column, and its cell. M: million parameters; x: compression ratio.
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
    """Lines of a Markdown table, its columns aligned."""
    cells = [list(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths))} |" for line in cells]
    return [lines[0], f"|{'|'.join('-' * (width + 1) + ':' for width in widths)}|", *lines[1:]]


def legend(counts: dict) -> list[str]:
    """What the columns are, for reading below the table."""
    lines = [
        "weights M, +biases M: total less sparsity x the weights, or the weights and biases, of the gated linears.",
    ]
    if counts["pretraining"] is not None:
        which = "+biases M" if counts["paper_prunes_biases"] else "weights M"
        cut, rounded = (two_decimals(counts["pretraining"], cut) for cut in (True, False))
        lines += [
            f"paper's M: the rule that gives what the paper printed; its tables state none. Here {which}: base",
            "  models go by weights, the large one by weights and biases. At 0 % another model, with its pre-training",
            f"  heads and no CTC head: {counts['pretraining']:,} = {rounded} M. That it is cut to {cut}, not",
            "  rounded, is a guess that the large model's figure needs.",
            "paper's x: that other model / paper's M, so not one model before and after pruning, which is kept x.",
        ]
    return [
        *lines,
        "kept, kept x: our rule. Total less the pruned weights, biases stay; total / kept.",
        "Mbit, Mbit x: 32 bits for every kept parameter and, where weights are pruned, 1 for every gated weight, kept",
        "  or not; 32 x total / bits. Whole channels (nas_cp) need no such mask.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.count_params", description=__doc__)
    parser.add_argument("--upstream", required=True, help=f"{', '.join(CONFIGS)}, or a Hugging Face folder")
    parser.add_argument("--sparsity", nargs="+", help="fractions, such as 0.65; the paper's rows where not given")
    parser.add_argument("--method", help="whose extra trained parameters to print; every method's where not given")
    parser.add_argument("--json", help="write all counts to this file too")
    args = parser.parse_args()
    methods = list(all_methods()) if args.method is None else [find_method(args.method).name]
    counts = account(args.upstream, args.sparsity and [number(text) for text in args.sparsity])
    extra = [f"{method} {counts['extra_parameters'][method]}" for method in methods]
    print(
        f"{counts['upstream']}: {counts['total']:,} parameters with a CTC head of {counts['tokens']} tokens; "
        f"{counts['linears']} gated linears of {counts['weights']:,} weights and {counts['biases']:,} biases",
        f"extra trained parameters: {', '.join(extra)}",
        *table(counts["rows"]),
        *legend(counts),
        sep="\n",
    )
    if args.json:
        write_json(args.json, counts)


def number(text: str) -> float | str:
    """``text`` as a number, or as it is, for ``account`` to refuse."""
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    run_main(main)
