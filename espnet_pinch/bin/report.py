"""Tables 1 and 2 and Figure 2 out of whatever has finished in an experiment folder, the paper's figures beside ours.

Writes RESULTS.md, table1_UPSTREAM.csv, head_to_head_UPSTREAM.csv, table2.csv, runs.csv and images/. Runs that are not
finished, or broken, are named; what was not run says so.
"""

import argparse
import sys
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.files import write_text
from espnet_pinch.results import paper
from espnet_pinch.results.figure2 import plot_figure2
from espnet_pinch.results.head_to_head import head_to_head
from espnet_pinch.results.pareto import AXES, plot_pareto
from espnet_pinch.results.sweep import all_sets, common_sets, rate_title, read_runs, systems
from espnet_pinch.results.tables import by_target, costs, runs_csv, table1, table2, to_csv, to_markdown
from espnet_pinch.results.unit import Unit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.report", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="folder of a corpus' experiments: exp/CORPUS")
    parser.add_argument("--out", type=Path, help="folder of the report; EXP/report where not given")
    parser.add_argument("--upstream", nargs="+", help="only these; all that have a run, and the paper's, if not given")
    args = parser.parse_args()
    out = args.out or args.exp / "report"
    runs = read_runs(args.exp)
    found = systems(runs)
    # The paper's rows are of use beside LibriSpeech's sets, or where nothing has been measured yet.
    beside_paper = not found or any(name.replace("_", "-") in paper.SETS for name in all_sets(found))
    printed = [row.upstream for row in paper.TABLE1] if beside_paper else []
    upstreams = args.upstream or list(dict.fromkeys([*(s.upstream for s in found), *printed]))
    test = (found[0].unit if found else Unit()).test
    corpora = sorted({run.results.corpus or "unnamed" for run in runs if run.results})
    lines = [
        f"# Results: {args.exp.name}",
        "",
        f"Columns *ours* were measured here (corpus {', '.join(corpora) or '-'}); columns *paper* are printed in arXiv "
        "2505.22608 and were measured on LibriSpeech-100h by its authors. † no significant increase over the column's "
        f"own baseline ({test}, one-sided, alpha = 0.05; of several seeds, in none). ± is the standard deviation "
        "over seeds. In pictures an arrow marks the largest sparsity of a method without such an increase.",
        "",
    ]
    for upstream in upstreams:
        own = [system for system in found if system.upstream == upstream]
        table = table1(upstream, own)
        write_text(out / f"table1_{upstream}.csv", to_csv(*table))
        lines += [f"## {upstream}", "", *to_markdown(table), ""]
        apart = [name for name in all_sets(own) if name not in common_sets(own)]
        if apart:
            lines += [f"Not of every run, so left out of figures over several sets: {', '.join(apart)}.", ""]
        if plot_figure2(upstream, own, out / "images" / f"figure2_{upstream}"):
            lines += [f"![{rate_title(own)} against sparsity](images/figure2_{upstream}.png)", ""]
        for axis in AXES:
            if plot_pareto(upstream, own, out / "images" / f"{axis.name}_{upstream}", axis):
                lines += [f"![{rate_title(own)} against {axis.label}](images/{axis.name}_{upstream}.png)", ""]
        if own:
            lines += [*to_markdown(by_target(own)), "", *to_markdown(costs(own)), ""]
        against = head_to_head(own)
        if against[1]:
            write_text(out / f"head_to_head_{upstream}.csv", to_csv(*against))
            lines += [
                "The other systems beside pinch at the same target: all test sets together, over the seeds that both "
                "have. A difference is positive where pinch has fewer errors; its interval is by paired bootstrap over "
                "utterances.",
                "",
                *to_markdown(against),
                "",
            ]
    if beside_paper and any(row.upstream in upstreams for row in paper.TABLE2):
        table = table2(found)
        write_text(out / "table2.csv", to_csv(*table))
        lines += ["## Against earlier work", "", *to_markdown(table), ""]
        lines += ["\\* SUPERB leaderboard: frozen upstream, not the same task.", ""]
    write_text(out / "runs.csv", runs_csv(found))
    left = [run for run in runs if not run.results]
    if left:
        lines += ["## Not in the tables", "", *(f"- {run.folder.name}: {run.state}" for run in left), ""]
    write_text(out / "RESULTS.md", "\n".join(lines))
    for run in left:
        print(f"warning: {run.folder} left out; {run.state}", file=sys.stderr)
    print(f"{out}/RESULTS.md: {len(runs) - len(left)} finished runs, {len(left)} left out")


if __name__ == "__main__":
    run_main(main)
