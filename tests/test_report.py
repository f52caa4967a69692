"""Tables and figures out of whatever has finished: the paper's figures beside ours, and what is missing or broken."""

import csv
import json
import sys

import pytest
import yaml
from conftest import write_results
from matplotlib.figure import Figure

from espnet_pinch.bin import curve, report
from espnet_pinch.core.parameters import LayerCount
from espnet_pinch.data.source import KEYS
from espnet_pinch.errors import UserError
from espnet_pinch.files import write_text
from espnet_pinch.results import paper
from espnet_pinch.results.experiment import Experiment, write_report
from espnet_pinch.results.figure2 import plot_figure2
from espnet_pinch.results.head_to_head import NO_TRANSCRIPTS, head_to_head
from espnet_pinch.results.plots import name_axes, plot_layers, save
from espnet_pinch.results.sweep import read_runs, systems
from espnet_pinch.results.tables import NOT_RUN, by_target, table1, table2

SETS = ("dev_clean", "dev_other", "test_clean", "test_other")


def test_systems_of_different_upstreams_are_not_compared(tmp_path):
    found = []
    for name, commit in (("asr_baseline", "c"), ("asr_run", "d")):
        source = {**dict.fromkeys(KEYS), "upstream": "a/b", "commit": commit * 40}
        write_text(
            tmp_path / name / "folded" / "config.yaml", yaml.safe_dump({"frontend_conf": {"built": {"source": source}}})
        )
        found.append(Experiment(tmp_path / name, "decode_ctc_greedy", tmp_path, ("test",)))
    wanted = (
        "asr_baseline is of the upstream a/b at commit c+, and .*asr_run of a/b at commit d+: they cannot be compared"
    )
    with pytest.raises(ValueError, match=wanted):
        write_report(tmp_path / "out", found[1], found[0], "tiny")
    assert not (tmp_path / "out").exists()


def write_run(exp, upstream, method, target, errors, seed=0, reached=None, sets=SETS, **settings):
    """A run with ``errors`` wrong words of 1000 in every set, its results and transcripts; the baseline has 50."""
    folder = exp / f"asr_{upstream}_{method}_{target}_seed{seed}{''.join(settings)}"
    write_results(folder, method, target, dict.fromkeys(sets, errors), reached, upstream, seed, settings)
    return folder


@pytest.fixture
def exp(tmp_path):
    exp = tmp_path / "exp" / "librispeech_100"
    write_run(exp, "wav2vec2_base", "pinch", 0.65, 51)
    write_run(exp, "wav2vec2_base", "pinch", 0.85, 60)
    write_run(exp, "wav2vec2_base", "pinch", 0.85, 62, seed=1)
    write_run(exp, "wav2vec2_base", "ump", 0.65, 80)
    write_run(exp, "mini", "nas_cp", 0.5, 90)
    (exp / "asr_mini_baseline").mkdir()
    (exp / "asr_stats_mini").mkdir()
    return exp


def test_table_1_has_the_papers_figure_beside_ours_and_says_what_was_not_run(exp):
    found = [system for system in systems(read_runs(exp)) if system.upstream == "wav2vec2_base"]
    head, rows = table1("wav2vec2_base", found)
    assert head[:6] == ["system", "target %", "params M: paper", "ours", "dev_clean: paper", "ours"]
    cells = {(row[0].split()[0], row[1]): row[2:] for row in rows}
    assert cells["baseline,", "0"][:4] == ["95.04", "1.00", "6.10", "5.00"]
    assert cells["pinch", "65"][:4] == ["39.19", "0.35", "6.03†", "5.10†"]  # 1 word more of 1000
    assert cells["pinch", "85"][:4] == ["22.20", "0.15", "7.49", "6.10 ± 0.14"]  # two seeds, both worse
    assert cells["pinch", "90"] == [
        "17.96",
        NOT_RUN,
        "8.22",
        NOT_RUN,
        "23.36",
        NOT_RUN,
        "8.63",
        NOT_RUN,
        "24.30",
        NOT_RUN,
    ]
    assert cells["UMP", "65"][:4] == ["-", "0.35", "-", "8.00"]
    assert len(rows) == 1 + 8 + 1


def test_an_upstream_that_is_not_the_papers_has_no_column_of_it(exp):
    head, rows = table1("mini", [system for system in systems(read_runs(exp)) if system.upstream == "mini"])
    assert head == ["system", "target %", "params M", *SETS]
    assert [row[0] for row in rows] == ["baseline, not pruned", "NAS-CP"]


def test_runs_that_differ_in_their_settings_are_not_taken_for_seeds(exp, tmp_path):
    for errors, more in ((60, {"eta": 0.02}), (70, {"eta": 3e-5, "lr": 0.1}), (72, {"eta": 3e-5, "lr": 0.1})):
        write_run(exp, "micro", "pinch", 0.65, errors, errors, tau_end=0.01, **more)
    own = [system for system in systems(read_runs(exp)) if system.upstream == "micro"]
    rows = table1("micro", own)[1]
    assert [row[0] for row in rows] == [
        "baseline, not pruned",
        "pinch (self-pinching gates); eta 0.02",
        "pinch (self-pinching gates); eta 3e-05, lr 0.1",
    ]
    assert [row[3] for row in rows] == ["5.00", "6.00", "7.10 ± 0.14"]
    assert plot_figure2("micro", own, tmp_path / "figure")
    assert "eta 3e-05, lr 0.1" in (tmp_path / "figure.svg").read_text()


def test_a_run_with_bits_says_so_and_is_none_of_the_papers(tmp_path):
    exp = tmp_path / "exp" / "librispeech_100"
    write_run(exp, "wav2vec2_base", "pinch", 0.85, 90, **{"quantize bits": 2})
    for errors in (None, 60):
        if errors:
            write_run(exp, "wav2vec2_base", "pinch", 0.85, errors, seed=1)
        found = systems(read_runs(exp))
        rows = {row[0]: row for row in table1("wav2vec2_base", found)[1] if row[1] == "85"}
        assert rows["pinch (self-pinching gates); quantize bits 2"][4:6] == ["-", "9.00"]
        own = f"{errors / 10:.2f}" if errors else NOT_RUN
        assert rows["pinch (self-pinching gates)"][4:6] == ["7.49", own]
        [row] = [row for row in table2(found)[1] if row[0] == "wav2vec2-base, self-pinching (85 %)"]
        assert row[-1] == own


def test_a_long_name_of_a_curve_takes_lines_not_the_room_of_the_picture(tmp_path):
    figure = Figure(figsize=(5.5, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], label="pinch; unit structured, conv True, targets in one run 0.3 0.5, " * 3)
    name_axes(axis, "title", "x", "y")
    save(figure, tmp_path / "figure")
    legend, room = axis.get_legend().get_window_extent(), axis.get_window_extent()
    assert room.width > 300 and legend.width < room.width


def test_many_curves_have_their_legend_under_the_axes_and_all_of_their_room(tmp_path):
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axis = figure.subplots()
    for i in range(16):
        axis.plot([0, 1], label=f"curve {i}")
    name_axes(axis, "title", "x", "y")
    save(figure, tmp_path / "figure")
    legend, room = axis.get_legend().get_window_extent(), axis.get_window_extent()
    assert room.height > 300 and legend.y1 < room.y0 - 50  # where the label of the axis is


def test_our_own_figures_by_target(exp):
    write_run(exp, "wav2vec2_base", "dense", 0.0, 50)
    head, rows = by_target([s for s in systems(read_runs(exp)) if s.upstream == "wav2vec2_base"])
    assert head[1:] == ["0 %", "65 %", "85 %"]
    assert [row[1:] for row in rows] == [
        ["5.00", "-", "-"],
        ["5.00†", "-", "-"],
        ["-", "5.10†", "6.10 ± 0.14"],
        ["-", "8.00", NOT_RUN],
    ]


def test_each_target_of_a_run_is_a_system_and_a_later_fold_is_none(exp, tmp_path):
    several = exp / "asr_wav2vec2_base_pinch_0.65_0.85"
    for target, errors in ((0.65, 53), (0.85, 66)):
        several.mkdir(exist_ok=True)
        write_run(tmp_path, "wav2vec2_base", "pinch", target, errors, several="yes").rename(several / str(target))
    for run in (several, exp / "asr_wav2vec2_base_pinch_0.65_seed0"):
        (run / "folded" / "0.7").mkdir(parents=True)  # of espnet-pinch fold
    found = [s for s in systems(read_runs(exp)) if (s.upstream, s.method) == ("wav2vec2_base", "pinch")]
    assert sorted((s.target, len(s.runs), "several" in s.variant) for s in found) == [
        (0.65, 1, False),
        (0.65, 1, True),
        (0.85, 1, True),
        (0.85, 2, False),
    ]


def test_the_other_methods_are_compared_with_pinch_on_the_seeds_that_both_have(tmp_path):
    exp = tmp_path / "exp"
    for seed, (pinch, ump, nas) in enumerate([(50, 51, 40), (60, 60, 30)]):
        write_run(exp, "micro", "pinch", 0.65, pinch, seed)
        write_run(exp, "micro", "ump", 0.65, ump, seed)
        write_run(exp, "micro", "nas_cp", 0.65, nas, seed)
    write_run(exp, "micro", "mixed_sparsity", 0.65, 80, seed=1, reached=0.6)
    write_run(exp, "micro", "dense", 0.65, 80, seed=2)  # no seed of pinch
    write_run(exp, "micro", "ump", 0.75, 80)  # no pinch at this target
    gone = write_run(exp, "micro", "pinch", 0.65, 50, seed=1, eta=1) / "decoded" / "test_clean" / "text"
    head, rows = head_to_head(systems(read_runs(exp)))
    assert [name.split(";")[0] for _, name, *_ in rows] == [
        "pinch (self-pinching gates)",
        "Mixed-sparsity",
        "NAS-CP",
        "UMP",
    ]
    by_name = {row[1].split(";")[0]: dict(zip(head, row)) for row in rows}
    columns = ("runs", "test words", "errors of pinch", "errors", "difference, points of WER", "verdict")
    found = {name: [row[column] for column in columns] for name, row in by_name.items()}
    assert found["UMP"] == ["2", "4000", "220", "222", "+0.05", "no difference shown"]
    assert found["NAS-CP"] == ["2", "4000", "220", "140", "-2.00", "better than pinch"]
    assert found["Mixed-sparsity"] == ["1", "2000", "120", "160", "+2.00", "worse than pinch"]
    reached = [by_name["Mixed-sparsity"][f"sparsity reached %{of}"] for of in (": pinch", "")]
    assert reached == ["65.00", "60.00"]
    gone.unlink()
    assert head_to_head(systems(read_runs(exp)))[1][0][5:] == [NO_TRANSCRIPTS] * 6
    assert head_to_head([s for s in systems(read_runs(exp)) if s.method != "pinch"]) == ([], [])


def test_an_utterance_is_drawn_with_all_of_its_seeds(tmp_path):
    """Two equal seeds tell no more than one: the interval is the same."""
    intervals = []
    for seeds in (1, 2):
        exp = tmp_path / str(seeds) / "exp"
        for seed in range(seeds):
            write_run(exp, "micro", "pinch", 0.65, 50, seed)
            write_run(exp, "micro", "ump", 0.65, 60, seed)
        head, [row] = head_to_head(systems(read_runs(exp)))
        intervals.append(row[head.index("95 % interval")])
    assert intervals[0] == intervals[1]


def test_table_2_keeps_earlier_work_apart(exp):
    _, rows = table2(systems(read_runs(exp)))
    assert len(rows) == len(paper.TABLE2)
    by_name = {row[0]: row for row in rows}
    assert by_name["DPHuBERT"][2:] == ["23.59", "-", "4.01", "-", "24 h, 75K it", "-", "10.47*", "-"]
    own = by_name["wav2vec2-base, self-pinching (85 %)"]
    assert own[2:] == ["22.20", "0.15", "4.28", "6.67", "11 h, 30 ep, 27K it", "2.0 h, 100 it", "7.46", "6.10 ± 0.14"]
    assert by_name["HuBERT-large, self-pinching (90 %)"][3] == NOT_RUN


def run(monkeypatch, *options, program=report):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, options)])
    program.main()


def test_the_report_goes_on_over_what_is_missing_and_names_what_is_broken(exp, monkeypatch, capsys):
    write_run(exp, "mini", "ump", 0.5, 70)
    (exp / "asr_mini_ump_0.5_seed0" / "results.json").write_text('{"upstream": "mi')
    (exp / "asr_mini_pinch_0.5").mkdir()
    old = write_run(exp, "mini", "pinch", 0.75, 70) / "results.json"
    old.write_text(json.dumps({k: v for k, v in json.loads(old.read_text()).items() if k != "significance"}))
    run(monkeypatch, "--exp", exp)
    out, err = capsys.readouterr()
    assert "5 finished runs, 3 left out" in out and len(err.splitlines()) == 3
    page = (exp / "report" / "RESULTS.md").read_text()
    assert "- asr_mini_ump_0.5_seed0: broken: results.json is not JSON" in page
    assert "- asr_mini_pinch_0.5: not finished: 0 epochs trained" in page
    assert "- asr_mini_pinch_0.75_seed0: broken: results.json has no significance; score it again with stage 6" in page
    assert "| pinch (self-pinching gates) | 85 | 22.20 | 0.15 |" in page and "| not run |" in page
    for upstream in ("wav2vec2_base", "hubert_large", "mini"):
        assert (exp / "report" / f"table1_{upstream}.csv").is_file()
        for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
            image = exp / "report" / "images" / f"figure2_{upstream}.{suffix}"
            assert image.read_bytes().startswith(start)
    assert "| 65 | UMP | 1 | 65.00 | 65.00 | 2000 | 102 | 160 | +2.90 | " in page
    assert (exp / "report" / "head_to_head_wav2vec2_base.csv").is_file()
    rows = list(csv.DictReader((exp / "report" / "runs.csv").open()))
    [row] = [r for r in rows if (r["method"], r["target_sparsity"], r["set"]) == ("ump", "0.65", "test_other")]
    assert row["errors"] == "80" and row["significant_increase"] == "True" and row["segments"] == "80"


def test_without_any_run_the_report_is_the_papers(tmp_path, monkeypatch):
    (tmp_path / "exp").mkdir()
    run(monkeypatch, "--exp", tmp_path / "exp", "--out", tmp_path / "out")
    page = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "| HuBERT-large, self-pinching (90 %) | 100 | 43.48 | not run |" in page
    with pytest.raises(FileNotFoundError, match="the experiment folder .*gone does not exist"):
        run(monkeypatch, "--exp", tmp_path / "gone")


def test_the_folder_of_all_corpora_is_not_taken_for_one_without_runs(exp):
    with pytest.raises(UserError, match=f"has no runs, but folders with runs: give one of {exp}$"):
        read_runs(exp.parent)


def test_the_picture_of_layers_has_the_short_names_of_their_family_in_its_order(tmp_path):
    linears = ["self_attn.linear_q", "ffn2.output_dense", "of_my_own", "ffn1.intermediate_dense"]
    counts = LayerCount(weights=4, pruned=1)
    plot_layers({f"encoder.layers.{i}.{name}": counts for i in range(2) for name in linears}, tmp_path / "layers")
    svg = (tmp_path / "layers.svg").read_text()
    places = [svg.index(f"<!-- {name} -->") for name in ("ffn1 fc1", "q", "ffn2 fc2", "of_my_own")]
    assert places == sorted(places)


def report_of(exp, monkeypatch):
    """The lines of the report on an experiment folder, and the tables and drawings of an upstream of the paper."""
    run(monkeypatch, "--exp", exp)
    table = list(csv.reader((exp / "report" / "table1_wav2vec2_base.csv").open()))
    picture = exp / "report" / "images" / "figure2_wav2vec2_base.svg"
    return (exp / "report" / "RESULTS.md").read_text(), table, picture.read_text() if picture.exists() else None


@pytest.mark.parametrize(
    "sets, tests",
    [
        (("test",), ("test",)),
        (("dev", "test_a", "test_b"), ("test_a", "test_b")),
        (("clean", "noisy"), ("clean", "noisy")),  # none is named "test": all count
    ],
)
def test_a_corpus_of_other_sets_has_a_report_without_the_papers_error_rates(tmp_path, monkeypatch, sets, tests):
    for errors, method in ((60, "pinch"), (70, "pinch"), (90, "ump")):
        write_run(tmp_path / "exp", "wav2vec2_base", method, 0.65, errors, seed=errors % 3, sets=sets)
    page, [head, *rows], svg = report_of(tmp_path / "exp", monkeypatch)
    assert head == ["system", "target %", "params M: paper", "ours", *sets]
    [pinch] = [row for row in rows if row[0].startswith("pinch") and row[1] == "65"]
    assert pinch[2:] == ["39.19", "0.35", *["6.50 ± 0.71"] * len(sets)]
    assert "| pinch (self-pinching gates) | - | 6.50 ± 0.71 |" in page and "Not of every run" not in page
    assert f"| 65 | UMP | 1 | 65.00 | 65.00 | {1000 * len(tests)} |" in page
    assert f"<!-- wav2vec2_base: {', '.join(tests)} -->" in svg and svg.count("<!-- WER, % -->") == 1
    assert "paper" not in svg and "baseline" in svg
    assert "Against earlier work" not in page and "hubert_large" not in page


def test_speed_is_drawn_and_listed_where_it_was_measured(tmp_path, monkeypatch):
    exp = tmp_path / "exp"
    for target, errors, seed, speed_up in ((0.5, 60, 0, 2.0), (0.5, 64, 1, 3.0), (0.75, 80, 0, 4.0)):
        write_results(
            exp / f"asr_{target}_{seed}",
            "pinch",
            target,
            {"test": errors},
            seed=seed,
            speed_up=speed_up,
            macs=1 - target,
        )
    run(monkeypatch, "--exp", exp)
    page = (exp / "report" / "RESULTS.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| pinch (self-pinching gates) | ")]
    assert [row[4:6] for row in rows if len(row) > 8] == [["50.00", "2.50"], ["25.00", "4.00"]]
    assert all(f"images/{name}_mini.png" in page for name in ("pareto", "macs")) and "bytes_mini.png" not in page
    svg = (exp / "report" / "images" / "pareto_mini.svg").read_text()
    assert "<!-- times as fast as the baseline -->" in svg and "<!-- pinch -->" in svg
    write_results(exp / "asr_untimed", "ump", 0.5, {"test": 60})
    run(monkeypatch, "--exp", exp)
    row = next(r for r in (exp / "report" / "RESULTS.md").read_text().splitlines() if r.startswith("| UMP | 50 | 1 |"))
    assert row.split(" | ")[4:6] == ["-", "-"]
    assert "<!-- UMP -->" not in (exp / "report" / "images" / "pareto_mini.svg").read_text()


@pytest.mark.parametrize("target, axis", [("target_sparsity", "sparsity"), ("target_macs", "multiplications")])
def test_the_curve_of_several_targets_is_drawn_against_what_they_are_targets_of(target, axis, tmp_path, monkeypatch):
    folder = tmp_path / "asr_several"
    for value, errors in ((0.5, 60), (0.75, 80)):
        write_results(folder / str(value), "pinch", value, {"test": errors}, macs=1 - value)
        path = folder / str(value) / "results.json"
        written = json.loads(path.read_text())
        given = {"target_sparsity": None, "target_macs": None, target: value}
        path.write_text(json.dumps({**written, **given}))
    run(monkeypatch, "--exp", folder, program=curve)
    page, svg = ((folder / name).read_text() for name in ("RESULTS.md", "images/curve.svg"))
    assert f"![WER against {axis}](images/curve.png)" in page and "[target 75 %](0.75/RESULTS.md)" in page
    assert f"<!-- {axis}" in svg


def test_table_2_says_not_run_where_test_clean_was_not_decoded(tmp_path):
    write_run(tmp_path / "exp", "wav2vec2_base", "pinch", 0.85, 60, sets=("test",))
    [row] = [
        row for row in table2(systems(read_runs(tmp_path / "exp")))[1] if "wav2vec2-base, self-pinching (85" in row[0]
    ]
    assert row[3] == "0.15" and row[-2:] == ["7.46", NOT_RUN]


def test_librispeechs_test_sets_alone_have_one_panel_with_the_papers_curve(tmp_path, monkeypatch):
    write_run(tmp_path / "exp", "wav2vec2_base", "pinch", 0.65, 60, sets=("test_clean", "test_other"))
    _, [head, *_], svg = report_of(tmp_path / "exp", monkeypatch)
    assert head[4:] == ["test_clean: paper", "ours", "test_other: paper", "ours"]
    assert "<!-- wav2vec2_base: test, clean and other -->" in svg and "pinch, paper -->" in svg
    assert "dev, clean and other" not in svg


def test_runs_on_other_sets_are_compared_on_those_that_all_have(tmp_path, monkeypatch):
    exp = tmp_path / "exp"
    write_run(exp, "wav2vec2_base", "pinch", 0.65, 60, sets=("dev", "test_a", "test_b"))
    write_run(exp, "wav2vec2_base", "ump", 0.65, 90, sets=("test_a", "test_c"))
    page, [head, *rows], svg = report_of(exp, monkeypatch)
    assert head[4:] == ["dev", "test_a", "test_b", "test_c"]
    cells = {row[0].split()[0]: row[4:] for row in rows if row[3] != NOT_RUN}
    assert cells["baseline,"] == ["5.00"] * 4
    assert cells["pinch"] == ["6.00", "6.00", "6.00", NOT_RUN] and cells["UMP"] == [NOT_RUN, "9.00", NOT_RUN, "9.00"]
    assert "Not of every run, so left out of figures over several sets: dev, test_b, test_c." in page
    assert "| 65 | UMP | 1 | 65.00 | 65.00 | 1000 | 60 | 90 | +3.00 | " in page
    assert "<!-- wav2vec2_base: test_a -->" in svg


def test_runs_without_a_set_in_common_are_not_compared(tmp_path, monkeypatch):
    exp = tmp_path / "exp"
    write_run(exp, "wav2vec2_base", "pinch", 0.65, 60, sets=("dev", "test_a"))
    write_run(exp, "wav2vec2_base", "pinch", 0.65, 60, seed=1, sets=("dev", "test_b"))
    write_run(exp, "wav2vec2_base", "ump", 0.65, 90, sets=("dev",))
    page, _, svg = report_of(exp, monkeypatch)
    assert f"| UMP | - | {NOT_RUN} |" in page and svg is None  # the dev set is not to pass for a test set
    assert not (exp / "report" / "head_to_head_wav2vec2_base.csv").exists()
