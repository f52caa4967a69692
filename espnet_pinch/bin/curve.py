"""The curve of a run with several targets: its RESULTS.md and picture, single runs of the method beside it."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.errors import UserError
from espnet_pinch.files import write_text
from espnet_pinch.results.figure2 import plot_figure2
from espnet_pinch.results.head_to_head import head_to_head
from espnet_pinch.results.pareto import MACS, plot_pareto
from espnet_pinch.results.sweep import BASELINE, read_runs, systems
from espnet_pinch.results.tables import by_target, costs, to_markdown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.curve", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the run, its targets scored")
    args = parser.parse_args()
    found = [run for run in read_runs(args.exp.parent) if run.results]
    own = {run.folder.name: run.results for run in found if run.folder.parent == args.exp and run.results}
    if not own:
        raise UserError(f"{args.exp} has no results of several targets: score them first (stage 6)")
    first = next(iter(own.values()))
    upstream, method = first.upstream, first.method
    beside = [s for s in systems(found) if s.upstream == upstream and s.method in (method, BASELINE)]
    picture = args.exp / "images" / "curve"
    if first.target_sparsity is None:
        against_what = "multiplications"
        plot_pareto(upstream, beside, picture, MACS)
    else:
        against_what = "sparsity"
        plot_figure2(upstream, beside, picture)
    against = head_to_head(beside)
    lines = [
        f"# {upstream}: {method}, {len(own)} targets in one run",
        "",
        *to_markdown(by_target(beside)),
        "",
        f"![WER against {against_what}](images/curve.png)",
        "",
        *([*to_markdown(against), ""] if against[1] else []),
        *to_markdown(costs(beside)),
        "",
        *(f"- [target {100 * results.target:g} %]({part}/RESULTS.md)" for part, results in own.items()),
        "",
    ]
    write_text(args.exp / "RESULTS.md", "\n".join(lines))


if __name__ == "__main__":
    run_main(main)
