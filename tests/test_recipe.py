"""The recipe as a user runs it: all stages on a tiny corpus, a second run, and what bad input gets."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet_pinch.asr.resume import owned
from espnet_pinch.asr.small_upstreams import make_small_upstream
from espnet_pinch.data.kaldi_dir import read_table
from espnet_pinch.data.mini_corpus import make_mini_corpus
from espnet_pinch.data.source import read_record

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A copy of the recipe, and a tiny corpus beside it."""
    root = tmp_path_factory.mktemp("recipe dir")  # a space in the path, as users have
    for name in ("conf", "local", "utils", "egs"):
        skip = shutil.ignore_patterns("downloads", "data", "dump", "exp")
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=skip)
    make_mini_corpus(root / "corpus", scale=0.05)
    return root / "egs" / "librispeech_100"


def run(recipe: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["./run.sh", "--upstream", "mini", "--python", sys.executable, *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=recipe, capture_output=True, text=True, env=environment)


SHORT = ("--asr_args", "--max_epoch 2 --batch_size 4", "--baseline_args", "--max_epoch 1", "--asr-tag", "short")


@pytest.fixture(scope="module")
def finished(recipe) -> Path:
    """The folder of a run through all stages."""
    done = run(recipe, "--librispeech", "../../corpus", "--target-sparsity", "0.8", *SHORT, "--nj", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished" in done.stdout and "epoch 2 of 2" in done.stdout
    [folder] = (recipe / "exp").glob("corpus_*/asr_short")
    return folder


def test_all_stages_leave_what_they_promise(recipe, finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["upstream"] == "mini" and results["method"] == "pinch" and results["target_sparsity"] == 0.8
    for system in (results, results["baseline"]):
        assert system["upstream_source"] == read_record(recipe / "downloads" / "upstreams" / "mini")
    assert results["upstream_source"]["origin"] == "made by espnet_pinch, random weights, seed 0"
    assert 0.8 <= results["sparsity"] <= 0.801
    assert "--target-sparsity 0.8" in results["command"] and "--train_set" not in results["command"]
    for system in (results, results["baseline"]):
        assert set(system["wer"]) == {"dev_clean", "dev_other", "test_clean", "test_other"}
        for score in system["wer"].values():
            assert score["wer"] == score["errors"] / score["words"]
        assert system["seconds"] > 0 and system["peak_memory_bytes"] > 1e8
        assert system["macs"] == system["macs_total"] > 1e8 and 0 < system["forward_seconds"] < 60
        assert system["file_bytes"] > 1e6
        assert "threads" in system["forward_device"]
    assert results["baseline"]["sparsity"] == 0
    assert results["params_total"] == results["baseline"]["params_total"]
    assert results["extra_trained_parameters"] == 24
    state = torch.load(finished / "folded" / "model.pth", weights_only=True)
    layers = json.loads((finished / "folded" / "parameters.json").read_text())["layers"]
    zeros = sum(int((state[f"frontend.upstream.{name}.weight"] == 0).sum()) for name in layers)
    assert zeros == results["params_total"] - results["params_kept"]
    page = (finished / "RESULTS.md").read_text()
    assert (
        "| | baseline | pinch, target 80 % |" in " ".join(page.split())
        and "| sparsity % | 0.00 | 80.0" in page
        and "images/course.png" in page
        and "images/layers.png" in page
        and "## Appendix: what the run gets wrong beside its baseline" in page
        and "Upstream: mini (made by espnet_pinch, random weights, seed 0); licence: not known." in page
    )
    for name in ("course", "layers"):
        assert (finished / "images" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (finished / "images" / f"{name}.svg").read_bytes()[:1000]
    dump = next((recipe / "dump").glob("corpus_*/mini/raw"))
    for name in results["wer"]:
        assert (
            read_table(finished / "decode_ctc_greedy" / name / "text").keys() == read_table(dump / name / "text").keys()
        )
    assert not [p for p in recipe.rglob("*") if p.name.startswith(".") and p.is_file()]  # nothing half-written


def test_a_second_run_does_nothing_again(recipe, finished):
    before = (finished / "checkpoint.pth").stat().st_mtime_ns
    done = run(recipe, "--librispeech", "../../corpus", "--target-sparsity", "0.8", *SHORT, "--nj", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before, nothing changed") == 10
    assert (finished / "checkpoint.pth").stat().st_mtime_ns == before


@pytest.mark.slow
def test_espnets_beam_search_decodes_the_same_model(recipe, finished):
    more = ("--stage", "5", "--inference_config", "conf/decode_beam.yaml", "--inference_args", "--beam_size 2")
    more += ("--test_sets", "dev_other", "--inference_nj", "2")
    done = run(recipe, "--librispeech", "../../corpus", "--target-sparsity", "0.8", *SHORT, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((finished / "decode_beam" / "results.json").read_text())
    assert list(results["wer"]) == ["dev_other"]
    assert len(json.loads((finished / "results.json").read_text())["wer"]) == 4  # that of greedy search stays


@pytest.mark.slow
def test_a_language_model_of_the_training_transcripts_decodes_the_same_model(recipe, finished):
    dump = next((recipe / "dump").glob("corpus_*/mini/raw"))
    command = [sys.executable, "-m", "espnet_pinch.bin.train_lm", "--text", str(dump / "train_clean_100" / "text")]
    subprocess.run([*command, "--out", str(recipe / "of train.arpa")], check=True)
    options = ("--librispeech", "../../corpus", "--target-sparsity", "0.8", *SHORT, "--stage", "5", "--stop_stage", "5")
    options += ("--test_sets", "dev_other", "--lm", "of train.arpa", "--inference_args", "--lm_weight 1 --beam_size 4")
    done = run(recipe, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = finished / "decode_ctc_beam_of_train_lm_weight1_beam_size4"
    assert json.loads((folder / "dev_other" / "decode.json").read_text())["lm_weight"] == 1
    assert (folder / "dev_other" / "ctm").exists()
    wrong = run(recipe, "--stage", "5", "--inference_args", "--lm x.arpa")
    assert wrong.returncode == 1 and "an option of its own" in wrong.stderr
    wrong = run(recipe, "--stage", "5", "--lm", "x.arpa")
    assert wrong.returncode == 1 and "x.arpa does not exist" in wrong.stderr


def test_the_last_line_names_a_file_that_is_there(recipe, finished, tmp_path):
    (tmp_path / "link").symlink_to(recipe / "exp")
    corpus = os.path.relpath(recipe.parents[1] / "corpus", tmp_path)
    options = ["--upstream", "mini", "--python", sys.executable, "--librispeech", corpus, *SHORT, "--stage", "6"]
    options += ["--target_sparsity", "0.8", "--expdir", "link"]
    done = subprocess.run([str(recipe / "run.sh"), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [page] = re.findall(r" results: (.*)", done.stdout)
    assert page == str(tmp_path / "link" / finished.relative_to(recipe / "exp") / "RESULTS.md") and Path(page).exists()


def test_other_settings_are_not_mixed_into_a_trained_folder(recipe, finished):
    options = ("--librispeech", "../../corpus", "--target-sparsity", "0.7", *SHORT, "--stage", "4")
    with owned(finished):
        done = run(recipe, *options)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"is being trained by process {os.getpid()} on " in done.stderr
    done = run(recipe, *options)
    assert done.returncode == 1
    assert "was trained with other settings" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "pruning.target_sparsity: 0.8 -> 0.7; give another --asr_tag" in done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (["--unit", "structured", "--target_macs", "0.99"], "cannot save 99.00 % of its multiplications"),
        (["--asr_args", "--foo_bar 1"], "unrecognized arguments: --foo_bar 1"),
    ],
)
def test_what_the_model_does_not_allow_is_said_before_the_baseline(recipe, finished, tmp_path, options, message):
    options = ("--librispeech", "../../corpus", "--expdir", str(tmp_path), "--stage", "4", *options)
    done = run(recipe, *options)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not list(tmp_path.rglob("*baseline*")) and not list(tmp_path.rglob("*.pth"))


@pytest.mark.slow
def test_a_fine_tuned_ctc_model_is_its_own_baseline(recipe, finished, tmp_path):
    """It and the corpus lie in folders with all that YAML, ESPnet's options and Kaldi's tables read as their own."""
    fine_tuned, corpus = tmp_path / """models: "a", 'b' #1 é""", tmp_path / """odd: "corpus", 'c' #2 é"""
    shutil.copytree(next((recipe / "exp").glob("corpus_*/asr_mini_baseline/folded/hf")), fine_tuned)
    corpus.symlink_to(recipe.parents[1] / "corpus")
    conf = (
        (recipe / "conf" / "mini.yaml")
        .read_text()
        .replace("upstream: mini", f"upstream: {json.dumps(str(fine_tuned))}")
    )
    (recipe / "conf" / "own.yaml").write_text(conf)
    options = ("--librispeech", str(corpus), "--target_sparsity", "0.5", "--asr_args", "--max_epoch 1")
    options += ("--unknown_characters", "extend", "--token_type", "bpe")
    done = run(recipe, "--upstream", "own", "--stage", "1", "--audio_format", "flac.ark", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: own is its own baseline, so it has a CTC head: it keeps its own vocabulary, not bpe" in done.stdout
    [folder] = (recipe / "exp").glob("odd___corpus_*/asr_own_pinch_0.5_max_epoch1")
    results, first = (json.loads((f / "results.json").read_text()) for f in (folder, finished))
    assert results["baseline"]["seconds"] == 0 and results["baseline"]["epochs"] == 0
    for name, score in results["baseline"]["wer"].items():
        assert score == first["baseline"]["wer"][name]
    assert 0.5 <= results["sparsity"] <= 0.501
    assert results["unknown_characters"]["policy"] == "extend"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sparcity", "0.5"], "unknown option --sparcity"),
        (["--stage"], "option --stage needs a value"),
        (["--stage", "four"], "--stage must be a whole number"),
        (["--target-sparsity", "-0.1"], "target_sparsity must be .* not -0.1"),
        (["--target_sparsity", "a lot"], "must be a number such as 0.65"),
        (["--upstream", "whisper"], "unknown upstream 'whisper'.* there is: hubert_large micro mini"),
        (["--method", "mixed_sparsity"], "asr_mini_pinch_0.65/folded/.* does not exist; finish the pinch run"),
        (["--librispeech", "/no/such/folder"], "/no/such/folder does not exist"),
        (["--config", "no.sh"], "cannot read no.sh"),
        (
            ["--unknown_characters", "skip"],
            "unknown_characters must be one of error, drop, unknown, extend, not 'skip'",
        ),
        (["--token_type", "phn"], "--token_type must be char or bpe, not 'phn'"),
        (["--nbpe", "30"], "--nbpe needs --token_type bpe"),
        (
            ["--task", "classify", "--token_type", "bpe"],
            "--token_type is for speech recognition, not for --task classify",
        ),
        (["--layer_sparsities", "exp"], "--layer_sparsities: pinch reads no finished run"),
        (["--stage", "3"], "run stage 2 first"),
    ],
)
def test_a_wrong_option_gets_one_line(recipe, options, message):
    done = run(recipe, *options)
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


def drop_subset(corpus):
    shutil.rmtree(corpus / "LibriSpeech" / "dev-other")


def first(corpus, subset, pattern):
    return sorted((corpus / "LibriSpeech" / subset).rglob(pattern))[0]


def truncate(corpus):
    path = first(corpus, "test-other", "*.flac")
    path.write_bytes(path.read_bytes()[:2000])


def lose_audio(corpus):
    first(corpus, "dev-clean", "*.flac").unlink()


def lose_transcript(corpus):
    path = first(corpus, "dev-clean", "*.trans.txt")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def resample(corpus):
    soundfile.write(first(corpus, "train-clean-100", "*.flac"), np.zeros(8000), 8000)


def empty_transcript(corpus):
    path = first(corpus, "dev-clean", "*.trans.txt")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].split()[0], *lines[1:]]) + "\n")


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop_subset, "lacks dev-other"),
        (truncate, "cut short"),
        (lose_audio, "has no audio file"),
        (lose_transcript, "has no transcript"),
        (resample, "has 8000 Hz"),
        (empty_transcript, "has an empty transcript"),
    ],
)
def test_a_damaged_corpus_gets_one_line(recipe, finished, tmp_path, damage, message):
    shutil.copytree(recipe.parents[1] / "corpus", tmp_path / damage.__name__)
    damage(tmp_path / damage.__name__)
    done = run(recipe, "--librispeech", str(tmp_path / damage.__name__), "--stage", "1", "--stop-stage", "2")
    assert done.returncode == 1, done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    [data] = (recipe / "data").glob(f"{damage.__name__}_*")
    assert not (data / "check.done").exists() and not (data / "test_other" / "utt2num_samples").exists()


def test_no_network_says_what_to_put_where(recipe):
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = run(recipe, "--stop_stage", "0", **proxy)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "could not fetch train-clean-100" in line and "--librispeech" in line
    done = run(recipe, "--upstream", "wav2vec2_base", "--librispeech", "../../corpus", "--stop_stage", "0", **proxy)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert (
        "could not fetch facebook/wav2vec2-base-100h" in line
        and "downloads/upstreams/facebook--wav2vec2-base-100h" in line
    )


def test_an_upstream_folder_without_config_is_named(recipe, finished, tmp_path):
    (tmp_path / "upstream").mkdir()
    conf = (recipe / "conf" / "mini.yaml").read_text().replace("upstream: mini", f"upstream: {tmp_path}/upstream")
    (tmp_path / "own.yaml").write_text(conf)
    options = ("--librispeech", "../../corpus", "--asr_config", str(tmp_path / "own.yaml"), "--stage", "2")
    done = run(recipe, *options, "--dumpdir", str(tmp_path / "dump"))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "has no config.json" in line


def with_upstream(recipe, path, upstream):
    """A YAML like conf/mini.yaml with another upstream."""
    path.write_text((recipe / "conf" / "mini.yaml").read_text().replace("upstream: mini", f"upstream: {upstream}"))
    return str(path)


def test_an_experiment_does_not_go_on_with_another_upstream(recipe, finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(recipe / "downloads" / "upstreams" / "mini", other)  # times and sizes too
    conf = with_upstream(recipe, tmp_path / "other.yaml", other)
    options = ("--librispeech", "../../corpus", "--target-sparsity", "0.8", *SHORT, "--asr_config", conf)
    done = run(recipe, *options, "--stage", "3", "--stop_stage", "3")
    [line] = done.stderr.splitlines()
    assert re.search(f"dump/.*/mini/raw was begun with the upstream mini, and .*other.yaml names {other}: run", line)
    before = {path: path.read_bytes() for path in finished.parent.rglob("*.done")}
    for stage in ("4", "5", "7"):
        (recipe / "dump").rename(tmp_path / "dump")  # as if it were the other's
        shutil.copytree(tmp_path / "dump", recipe / "dump")
        [note] = (recipe / "dump").glob("corpus_*/mini/raw/upstream.txt")
        note.write_text(f"{other}\n")
        done = run(recipe, *options, "--stage", stage, "--stop_stage", stage)
        shutil.rmtree(recipe / "dump")
        (tmp_path / "dump").rename(recipe / "dump")
        [line] = done.stderr.splitlines()
        assert done.returncode == 1 and "asr_mini_baseline was begun with the upstream mini, and" in line
        assert "conf/mini_baseline.yaml names the upstream mini; the baseline starts from" in done.stdout
    assert {path: path.read_bytes() for path in finished.parent.rglob("*.done")} == before


@pytest.mark.slow
def test_the_dump_follows_the_upstream_that_the_yaml_names(recipe, finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(recipe / "downloads" / "upstreams" / "mini", other)  # of the same names, sizes and times
    conf = with_upstream(recipe, tmp_path / "other.yaml", other)
    options = ("--librispeech", "../../corpus", "--stage", "2", "--dumpdir", str(tmp_path / "dump"))
    assert run(recipe, *options, "--stop_stage", "2").returncode == 0
    done = run(recipe, *options, "--stop_stage", "2", "--asr_config", conf)
    assert done.returncode == 0 and "nothing changed" not in done.stdout
    done = run(recipe, *options[:2], "--stage", "4", *options[4:], "--stop_stage", "4", "--asr_config", conf)
    assert done.returncode == 1 and "asr_mini_baseline was begun with the upstream mini, and" in done.stderr


def test_stage_0_fetches_what_the_yaml_names_and_again_what_was_removed(recipe, tmp_path):
    cache, commit = tmp_path / "hub" / "models--own--tiny", "c" * 40
    for name in (commit, "d" * 40):
        make_small_upstream(cache / "snapshots" / name, "micro")
    (cache / "refs").mkdir()
    for name, of in (("main", commit), ("v1", "d" * 40)):
        (cache / "refs" / name).write_text(of)
    folders = recipe / "downloads" / "upstreams"
    for upstream, of in (("own/tiny", commit), ("own/tiny@v1", "d" * 40)):
        conf = with_upstream(recipe, tmp_path / "tiny.yaml", upstream)  # edited in between
        options = ("--librispeech", "../../corpus", "--stop_stage", "0", "--asr_config", conf)
        done = run(recipe, *options, HF_HUB_CACHE=str(tmp_path / "hub"))
        assert done.returncode == 0, done.stderr
        assert read_record(folders / upstream.replace("/", "--"))["commit"] == of
    shutil.rmtree(folders / "own--tiny@v1")
    for lost in ("config.json", "preprocessor_config.json"):
        done = run(recipe, *options, HF_HUB_CACHE=str(tmp_path / "hub"))
        assert done.returncode == 0 and (folders / "own--tiny@v1" / lost).is_file(), done.stderr
        (folders / "own--tiny@v1" / lost).unlink()
    with_upstream(recipe, tmp_path / "tiny.yaml", "conf/tiny")
    done = run(recipe, *options)
    assert done.stderr.startswith(f"error: {tmp_path}/tiny.yaml: the upstream folder conf/tiny does not exist")
