"""The paper's parameters and ratios, computed from the architectures; our own counting; what count_params prints."""

import json

import numpy as np
import pytest
from transformers import AutoModelForCTC, Wav2Vec2ConformerConfig

from espnet_pinch.asr.architectures import CONFIGS, ctc_model, pretraining_model
from espnet_pinch.asr.small_upstreams import make_small_upstream
from espnet_pinch.bin import count_params, run_main
from espnet_pinch.core.attach import find_linears
from espnet_pinch.results.accounting import (
    PAPER_PRUNES_BIASES,
    account,
    bits,
    count,
    count_all,
    extra_parameters,
    kept,
    paper_count,
    two_decimals,
)
from espnet_pinch.results.paper import ORIGINAL_M, SETS, TABLE1, TABLE2, table1_row, table2_row


@pytest.fixture(scope="module")
def counts():
    return {upstream: count(ctc_model(upstream)) for upstream in PAPER_PRUNES_BIASES}


@pytest.fixture(scope="module")
def extra():
    return {upstream: extra_parameters(ctc_model(upstream)) for upstream in PAPER_PRUNES_BIASES}


@pytest.fixture(scope="module")
def originals():
    return {upstream: count_all(pretraining_model(upstream)) for upstream in PAPER_PRUNES_BIASES}


def name(row):
    return f"{row.upstream}-{row.method}-{row.sparsity}"


PRUNED = [row for row in (*TABLE1, *TABLE2) if row.sparsity]


def test_table_1_is_whole():
    assert len(TABLE1) == 24 and len({(row.upstream, row.method, row.sparsity) for row in TABLE1}) == 24
    assert all(tuple(row.wer) == SETS for row in TABLE1)
    assert sum(rate.dagger for row in TABLE1 for rate in row.wer.values()) == 22


@pytest.mark.parametrize("row", PRUNED, ids=name)
def test_pruned_models_have_the_papers_parameters(counts, row):
    biases = PAPER_PRUNES_BIASES[row.upstream]
    assert two_decimals(paper_count(counts[row.upstream], row.sparsity, biases)) == f"{row.params_m:.2f}"


@pytest.mark.parametrize("row", [row for row in TABLE1 if row.method == "dense"], ids=name)
def test_uncompressed_models_have_the_papers_parameters(originals, row):
    assert two_decimals(originals[row.upstream], cut=True) == f"{row.params_m:.2f}"
    assert row.params_m == ORIGINAL_M[row.upstream]


@pytest.mark.parametrize("row", [row for row in TABLE2 if row.upstream], ids=name)
def test_our_ratios_of_table_2(counts, originals, row):
    pruned = paper_count(counts[row.upstream], row.sparsity, PAPER_PRUNES_BIASES[row.upstream])
    assert f"{originals[row.upstream] / pruned:.2f}" == f"{row.ratio:.2f}"
    assert two_decimals(originals[row.upstream], cut=True) == f"{ORIGINAL_M[row.upstream]:.2f}"


@pytest.mark.parametrize("row", [row for row in TABLE2 if row.ratio], ids=lambda row: row.system)
def test_every_ratio_of_table_2_divides_the_size_of_the_pretrained_model(row):
    assert f"{ORIGINAL_M[row.original] / row.params_m:.2f}" == f"{row.ratio:.2f}"


def test_the_papers_inconsistencies_are_real(counts, originals):
    """Each of the three rules gives other figures where the paper uses another rule."""
    for row in PRUNED:
        other = two_decimals(paper_count(counts[row.upstream], row.sparsity, not PAPER_PRUNES_BIASES[row.upstream]))
        assert other != f"{row.params_m:.2f}"
    for upstream, printed in (("wav2vec2_base", 95.04), ("hubert_large", 316.60)):
        assert two_decimals(counts[upstream].total) != f"{printed:.2f}"
    assert two_decimals(originals["hubert_large"]) == "316.61"  # so that it is cut, not rounded
    own = [f"{counts[r.upstream].total / kept(counts[r.upstream], r.sparsity):.2f}" for r in TABLE2 if r.upstream]
    assert own == ["4.25", "3.08", "4.25", "7.22"]


@pytest.mark.parametrize(
    "upstream, parts",
    [  # convolutions, feature projection, positional convolution, Transformer blocks, all with a head of 32 tokens
        ("wav2vec2_base", [4_200_448, 395_008, 4_719_488, 85_054_464, 94_396_320]),
        ("hubert_large", [4_210_176, 526_336, 8_389_760, 302_309_376, 315_471_520]),
    ],
)
def test_the_architectures_are_the_real_ones(upstream, parts):
    model = ctc_model(upstream)
    base, encoder = model.base_model, model.base_model.encoder
    found = [base.feature_extractor, base.feature_projection, encoder.pos_conv_embed, encoder.layers, model]
    assert [count_all(part) for part in found] == parts
    assert sum(p.numel() for p in model.parameters() if not p.is_meta) <= model.config.hidden_size  # masking's vector


def test_pretraining_heads_of_wav2vec2(originals, counts):
    head = 32 * (768 + 1)
    assert counts["wav2vec2_base"].total - head == 94_371_712
    assert originals["wav2vec2_base"] - 94_371_712 == 672_896


@pytest.mark.parametrize(
    "method, base, large",
    [
        ("pinch", 72, 144),
        ("pinch (structured)", 24, 48),
        ("pinch (structured with conv)", 31, 55),
        ("l0", 12 * (12 + 3072) + 2, 24 * (16 + 4096) + 2),
        ("nas_cp", 504, 1008),
        ("mixed_sparsity", 0, 0),
    ],
)
def test_extra_parameters(extra, method, base, large):
    for upstream, wanted in (("wav2vec2_base", base), ("wavlm_base_plus", base), ("hubert_large", large)):
        assert extra[upstream][method] == wanted


@pytest.mark.parametrize("sparsity", [0.0, 0.35, 0.5, 0.9])
def test_kept_and_bits_are_those_of_a_pruned_model(tiny_wav2vec2, sparsity):
    """Prune weights one by one until the sparsity is reached; store what is left."""
    model = AutoModelForCTC.from_config(tiny_wav2vec2)
    counted = count(model)
    gated = [linear.weight for linear in find_linears(model).values()]
    weights = np.ones(sum(w.numel() for w in gated), dtype=bool)
    while np.mean(~weights) < sparsity - 1e-12:
        weights[np.argmax(weights)] = False
    rest = [p for p in model.parameters() if not any(p is w for w in gated)]
    left = np.concatenate([p.detach().numpy().ravel() for p in rest] + [np.ones(weights.sum(), dtype=np.float32)])
    assert left.dtype == np.float32 and kept(counted, sparsity) == left.size
    mask = weights.size if sparsity else 0
    assert bits(counted, sparsity) == 8 * left.nbytes + mask


def test_rows_are_found_by_what_they_are_of():
    row = table1_row("wav2vec2_base", "pinch", 65 / 100)
    assert row.params_m == 39.19 and row.wer["test-clean"].percent == 6.12 and str(row.wer["test-clean"]) == "6.12†"
    assert table1_row("hubert_large", "mixed_sparsity", 0.1 + 0.2).params_m == 224.81
    assert table1_row("wavlm_base_plus", "pinch", 0.85) is None
    assert table2_row("wavlm_base_plus", "pinch", 0.85).wer == 7.05
    assert table1_row("mini", "pinch", 0.65) is None


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["count_params", *map(str, arguments)])
    run_main(count_params.main)


def cells(out):
    """``{cell of the first column: cells of the line}`` of a printed table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[0] == "|"]
    return {line[0]: line for line in lines[2:]}


@pytest.mark.parametrize("upstream", [*PAPER_PRUNES_BIASES])
def test_the_papers_figure_stands_beside_the_computed_one(monkeypatch, capsys, tmp_path, upstream):
    run(monkeypatch, "--upstream", upstream, "--json", tmp_path / "counts.json")
    printed = cells(capsys.readouterr().out)
    rows = {f"{100 * row['sparsity']:g}": row for row in json.loads((tmp_path / "counts.json").read_text())["rows"]}
    paper = [row for row in (*TABLE1, *TABLE2) if row.upstream == upstream]
    assert set(printed) == set(rows) == {"0", *(f"{100 * row.sparsity:g}" for row in paper)}
    for row in paper:
        sparsity = f"{100 * row.sparsity:g}"
        assert printed[sparsity][3] == printed[sparsity][4] == f"{row.params_m:.2f}"
        assert rows[sparsity]["paper_m"] == rows[sparsity]["published_m"] == row.params_m
        if row in TABLE2:
            assert printed[sparsity][5] == printed[sparsity][6] == f"{row.ratio:.2f}"


def test_given_sparsities_and_method(monkeypatch, capsys):
    run(monkeypatch, "--upstream", "hubert_large", "--sparsity", 0.5, 0.123, "--method", "nas_cp")
    out = capsys.readouterr().out
    assert "nas_cp 1008\n" in out and "pinch 144" not in out
    assert list(cells(out)) == ["50", "12.3"]


def test_a_folder_counts_as_its_built_in_architecture(tmp_path):
    make_small_upstream(tmp_path / "upstream")
    folder, built_in = account(str(tmp_path / "upstream"), [0.5]), account("mini", [0.5])
    assert folder["upstream"] != "mini"
    assert {**folder, "upstream": "mini"} == built_in
    assert built_in["rows"][0]["paper"] is None and built_in["pretraining"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--upstream", "wav2vec2_bass"], "unknown upstream 'wav2vec2_bass'; there is: wav2vec2_base, hubert_large"),
        (["--upstream", "mini", "--sparsity", "1.0"], "under 1"),
        (["--upstream", "mini", "--sparsity", "-0.1"], "at least 0"),
        (["--upstream", "mini", "--sparsity", "65"], "under 1"),
        (["--upstream", "mini", "--sparsity", "nan"], "under 1"),
        (["--upstream", "mini", "--sparsity", "half"], "not 'half'"),
        (["--upstream", "mini", "--method", "pruning"], "unknown pruning method 'pruning'"),
        (["--upstream", "{tmp}"], "has no config.json"),
        (["--upstream", "{tmp}/broken"], "is not a model of type"),
        (["--upstream", "{tmp}/odd"], "Validation error for field 'hidden_size'"),
    ],
)
def test_bad_input_is_one_clear_line(monkeypatch, capsys, tmp_path, arguments, message):
    for folder, config in (("broken", "{}"), ("odd", '{"model_type": "wav2vec2", "hidden_size": "wide"}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(config)
        (tmp_path / folder / "model.safetensors").touch()
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *(argument.format(tmp=tmp_path) for argument in arguments))
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert stop.value.code == 1 and line.startswith("error: ") and message in line and not captured.out


def test_all_built_in_upstreams_build():
    assert {upstream: count(ctc_model(upstream)).linears for upstream in CONFIGS} == {
        "wav2vec2_base": 72,
        "hubert_large": 144,
        "wavlm_base_plus": 72,
        "mini": 24,
        "micro": 18,
    }


def test_the_gated_layers_of_a_family_are_counted(tiny_config):
    counts = count(AutoModelForCTC.from_config(Wav2Vec2ConformerConfig(**tiny_config)))
    assert counts.linears == 2 * 8 and counts.weights == 2 * (4 * 16 * 16 + 4 * 16 * 24)
