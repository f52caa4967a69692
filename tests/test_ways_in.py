"""A corpus by every way in: the same data as through LibriSpeech's layout, whatever the files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpora import (
    FORMS,
    ROWS,
    SETS,
    THREE,
    Utt,
    as_cuts,
    as_kaldi,
    as_lhotse,
    as_segments,
    as_tsv,
    contents,
    prepare,
    raw,
    run,
    saved_set,
    stage_1,
    tone,
    write_table,
)

from espnet_pinch.bin import asr_train, check_data, fetch_upstream, prepare_dump, prepare_librispeech
from espnet_pinch.corpus.way import Asked, all_ways
from espnet_pinch.data.kaldi_dir import read_table
from espnet_pinch.explain import explain

ROOT = Path(__file__).parents[1]
SUBSETS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")
WORDS = ("ONE TWO", "THREE", "TWO ONE", "THREE TWO")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A tiny corpus in LibriSpeech's layout: noise."""
    root = tmp_path_factory.mktemp("a corpus") / "LibriSpeech"
    rng = np.random.default_rng(0)
    for number, subset in enumerate(SUBSETS):
        folder = root / subset / f"{number}" / "7"
        folder.mkdir(parents=True)
        lines = []
        for i in range(3):
            samples = rng.normal(0, 0.1, 16000 + 160 * i + number)
            soundfile.write(folder / f"{number}-7-{i}.flac", samples, 16000, subtype="PCM_16")
            lines.append(f"{number}-7-{i} {WORDS[(i + number) % 4]}\n")
        (folder / f"{number}-7.trans.txt").write_text("".join(lines))
    return root.parent


def utterances(corpus: Path) -> list[Utt]:
    found = []
    for path in sorted(corpus.rglob("*.trans.txt")):
        for id_, text in read_table(path).items():
            split = path.relative_to(corpus).parts[1].replace("-", "_")
            found.append(Utt(id_, text, id_.rpartition("-")[0], split, path.with_name(f"{id_}.flac")))
    return found


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """What LibriSpeech's own layout gives."""
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, prepare_librispeech, "--corpus", corpus, "--out", data)
        run(patch, check_data, "--data", data, "--sets", *(s.replace("-", "_") for s in SUBSETS), "dev")
    return data


@pytest.mark.parametrize("form", FORMS)
def test_a_corpus_is_the_same_by_every_way_in(corpus, expected, tmp_path, monkeypatch, form):
    options = form(utterances(corpus), tmp_path / "in")
    prepare(monkeypatch, tmp_path / "data", *options)
    assert contents(tmp_path / "data") == contents(expected)
    if form in (as_kaldi, as_tsv, as_lhotse, as_cuts):  # whole files stay where they are
        for name in ("dev", "test_other"):
            assert (tmp_path / "data" / name / "wav.scp").read_text() == (expected / name / "wav.scp").read_text()
        assert not list((tmp_path / "data" / "audio").glob("*.ark"))
    left = [p for p in (tmp_path / "data").rglob("*") if p.name.startswith(".")]
    assert not left


def test_the_dump_is_the_same_by_every_way_in(corpus, expected, tmp_path, monkeypatch, ctc_folder):
    upstream = ctc_folder(tmp_path / "upstream", ["<pad>", "<s>", "</s>", "<unk>", "|", *"ehnortw"])
    options = as_segments(utterances(corpus), tmp_path / "in")
    prepare(monkeypatch, tmp_path / "data", *options)
    dumps = []
    for data, packing in ((expected, "flac"), (tmp_path / "data", "flac"), (expected, "flac.ark")):
        out = tmp_path / f"dump{len(dumps)}"
        more = ("--upstream", upstream, "--out", out, "--audio_format", packing, "--unknown_characters", "drop")
        run(monkeypatch, prepare_dump, "--data", data, *more, *SETS[: SETS.index("--splits")])
        dumps.append(out)
        assert (out / "audio_type").read_text() == ("sound\n" if out == dumps[0] else "kaldi_ark\n")
    tokens = [(out / "token_list" / "char" / "tokens.txt").read_text() for out in dumps]
    assert contents(dumps[0]) == contents(dumps[1]) == contents(dumps[2]) and len(set(tokens)) == 1
    # an archive that stage 1 has made is not copied
    assert "/data/audio/" in (dumps[1] / "dev" / "wav.scp").read_text()


@pytest.mark.slow
def test_trained_weights_are_bitwise_the_same_by_every_way_in(corpus, expected, tmp_path, monkeypatch):
    run(monkeypatch, fetch_upstream, "--upstream", "micro", "--out", tmp_path / "micro")

    def trained(data: Path) -> dict:
        dump = data.parent / f"dump of {data.name}"
        sets = SETS[: SETS.index("--splits")]
        run(monkeypatch, prepare_dump, "--data", data, "--upstream", tmp_path / "micro", "--out", dump, *sets)
        options = ["--config", ROOT / "conf" / "micro_baseline.yaml", "--output_dir", data / "exp", "--max_epoch", 1]
        options += ["--token_list", dump / "token_list" / "char" / "tokens.txt"]
        options += ["--frontend_conf", f"upstream={tmp_path / 'micro'}"]
        sound = (dump / "audio_type").read_text().strip()
        for mode, name in (("train", "train_clean_100"), ("valid", "dev")):
            options += [f"--{mode}_data_path_and_name_and_type", f"{dump / name}/wav.scp,speech,{sound}"]
            options += [f"--{mode}_data_path_and_name_and_type", f"{dump / name}/text,text,text"]
            options += [f"--{mode}_shape_file", dump / name / "utt2num_samples"]
        asr_train.main([str(option) for option in options])
        return torch.load(data / "exp" / "1epoch.pth")

    first = trained(expected)
    for form in FORMS:
        prepare(monkeypatch, tmp_path / form.__name__, *form(utterances(corpus), tmp_path / f"in {form.__name__}"))
        weights = trained(tmp_path / form.__name__)
        assert weights.keys() == first.keys(), form
        assert all(torch.equal(value, first[name]) for name, value in weights.items()), form


def test_columns_may_have_spaces_in_their_names(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    table = "Audio File\tFull Text\tsplit\n" + "".join(f"a.wav\tA {s}\t{s}\n" for s in THREE[1::2])
    options = raw(table, options=("--columns", "audio='Audio File' \"text=Full Text\""))(tmp_path)
    stage_1(monkeypatch, tmp_path / "data", *options)
    assert list(read_table(tmp_path / "data" / "dev" / "text").values()) == ["A dev"]


def test_odd_ids_texts_and_speakers_are_right(tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a b.wav", tone(rate=8000), 8000)
    row = {"audio": "a b.wav", "split": "train", "text": "A"}
    rows = [{**row, "id": "../x/y"}, {**row, "speaker": "Ann B"}, {**row, "start": 0.5, "end": 1, "text": ""}]
    rows += [{**row, "id": "nl", "text": " B\r\n\tC  "}, *ROWS[1:]]
    rows = [{**r, "audio": "a b.wav"} for r in rows]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path, rows))
    texts = {"../x/y": "A", "Ann_B-a_b": "A", "a_b-00000500-00001000": "", "nl": "B C"}
    assert read_table(tmp_path / "data" / "train" / "text") == texts
    said = capsys.readouterr().out
    for line in (
        "1 of 6 utterances have an empty",
        "1 of 6 utterances had tabs",
        "1 of 6 utterances have a speaker with",
    ):
        assert line in said


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError) as error:
        stage_1(monkeypatch, tmp_path / "data", "--hf", tmp_path)
    assert explain(error.value).startswith("the package datasets is not installed: run pip install -e '.[hf]'")


def test_a_data_set_that_names_its_files_is_read_without_its_library_decoding_them(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    saved_set(["a.wav", str(tmp_path / "b.wav")], text=["A", "B"]).save_to_disk(str(tmp_path / "paths"))
    rows = list(all_ways()["hf"].rows(Asked(tmp_path / "paths")))
    assert [row.audio for row in rows] == [str(tmp_path / "paths" / "a.wav"), str(tmp_path / "b.wav")]
    held = [
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"bytes": (tmp_path / "a.wav").read_bytes(), "path": None},
    ]
    saved_set(held, text=["A", "B"]).save_to_disk(str(tmp_path / "saved"))  # takes the file in
    rows = list(all_ways()["hf"].rows(Asked(tmp_path / "saved")))
    assert [(row.text, row.id, row.recording) for row in rows] == [("A", "", "a.wav"), ("B", "", rows[1].audio)]
    for row in rows:
        with all_ways()["hf"].sound_file(row.audio) as path:
            assert Path(path).read_bytes() == (tmp_path / "a.wav").read_bytes()
        assert all_ways()["hf"].file_of(row.audio) == str(tmp_path / "saved" / "state.json")


def test_labels_that_a_saved_data_set_numbers_are_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    held = saved_set(["a.wav"] * 3, speaker=["s"] * 3)
    held = held.add_column("label", [1, 0, -1]).cast_column("label", datasets.ClassLabel(names=["no", "yes please"]))
    held.save_to_disk(str(tmp_path / "saved"))
    rows = all_ways()["hf"].rows(Asked(tmp_path / "saved", {"text": "label"}))
    assert [row.text for row in rows] == ["yes please", "no", ""]


def test_every_way_in_has_what_help_needs():
    assert list(all_ways()) == ["kaldi", "table", "hf", "lhotse"]
    for way in all_ways().values():
        assert way.summary and way.takes in ("DIR", "FILE") and max(map(len, way.summary.splitlines())) <= 80
