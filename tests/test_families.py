"""Every family of upstreams through stages 1 to 7, from a folder in the layout of its published checkpoint."""

import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCTC,
    Data2VecAudioConfig,
    HubertConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    WavLMConfig,
)

import espnet_pinch
from espnet_pinch import cli
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.upstream import WaveformProcessing, save_ctc_model
from espnet_pinch.bin import asr_decode, asr_train, check_data, export, fold, prepare_dump, prepare_librispeech, score
from espnet_pinch.data.kaldi_dir import read_table
from espnet_pinch.data.mini_corpus import make_mini_corpus
from espnet_pinch.export.model import count_layers

CONF = Path(__file__).parents[1] / "conf"
LIBRISPEECH = "<pad> <s> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z".split()
OLD = {"do_normalize": True, "return_attention_mask": False, "sampling_rate": 16000, "feature_size": 1}
MASKED = {**OLD, "return_attention_mask": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor"}


def wav2vec2(folder):
    """facebook/wav2vec2-base-100h: a .bin, names of weights before transformers 4.31, no tokenizer class."""
    return Wav2Vec2Config, LIBRISPEECH, OLD, {"mask_time_prob": 0.05, "feat_extract_norm": "group"}


def hubert(folder):
    """facebook/hubert-large-ls960-ft: layer norm before the blocks, a mask."""
    fields = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    return HubertConfig, LIBRISPEECH, MASKED, fields


def mms(folder):
    """facebook/mms-1b-all with one language merged in: adapters in the blocks."""
    fields = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True, "adapter_attn_dim": 4}
    return Wav2Vec2Config, LIBRISPEECH, MASKED, fields


def wavlm(folder):
    """patrickvonplaten/wavlm-libri-clean-100h-base-plus: lower case, no apostrophe, blank third from last."""
    names = ["|", *map(chr, range(97, 123)), "[UNK]", "[PAD]", "<s>", "</s>"]
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 29, "</s>": 30}))
    settings = {"unk_token": "[UNK]", "pad_token": "[PAD]", "tokenizer_class": "Wav2Vec2CTCTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "word_delimiter_token": "|"}))
    return WavLMConfig, names, {**MASKED, "do_normalize": False}, {"feat_extract_norm": "group", "pad_token_id": 28}


def data2vec(folder):
    """facebook/data2vec-audio-base-100h: no apply_spec_augment in its configuration, no processor class in any file."""
    return Data2VecAudioConfig, LIBRISPEECH, MASKED, {"conv_pos_kernel_size": 3}


def unispeech_sat(folder):
    """microsoft/unispeech-sat-base-100h-libri-ft: in the family of wav2vec2, by its model type alone."""
    return UniSpeechSatConfig, LIBRISPEECH, OLD, {"feat_extract_norm": "group"}


def conformer(folder):
    """facebook/wav2vec2-conformer-rel-pos-large-100h-ft: Conformer blocks, batch normalisation in them."""
    return Wav2Vec2ConformerConfig, LIBRISPEECH, MASKED, {"feat_extract_norm": "layer", "conv_depthwise_kernel_size": 5}


def omniasr(folder):
    """hf-audio/omniasr-ctc-300m-v2: a class, a tokenizer and a blank of its own, letters in both cases."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus with apostrophes."""
    folder = tmp_path_factory.mktemp("corpus")
    root = make_mini_corpus(folder, scale=0.02)
    for path in root.rglob("*.trans.txt"):
        path.write_text(path.read_text().replace("ONE", "ONE'S"))
    return folder


def publish(folder, family, ctc_folder):
    """Write the folder of a fine-tuned checkpoint as it lies on the hub."""
    folder.mkdir()
    config_class, names, processing, fields = family(folder)
    ctc_folder(folder, names, config_class, **fields)
    if family is wavlm:
        (folder / "vocab.json").write_text(json.dumps({name: row for row, name in enumerate(names[:29])}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({name: t for name, t in state.items() if name != "masked_spec_embed"}, folder / "pytorch_model.bin")


def test_a_vocabulary_without_ends_of_sentences_is_written(tmp_path, tiny_config):
    """UniSpeech-SAT's configuration takes no None for their numbers."""
    for config_class in (UniSpeechSatConfig, WavLMConfig):
        config = config_class(**tiny_config)
        head = torch.nn.Linear(config.hidden_size, 3)
        processing = WaveformProcessing()
        model = AutoModel.from_config(config)
        save_ctc_model(tmp_path / config.model_type, model, head, ["<blank>", "<unk>", "A"], processing)
        again = AutoModelForCTC.from_pretrained(tmp_path / config.model_type)
        assert torch.equal(again.lm_head.weight, head.weight)


@pytest.mark.parametrize(
    "family",
    [wav2vec2, hubert, pytest.param(mms, marks=pytest.mark.slow), wavlm, data2vec, unispeech_sat, conformer, omniasr],
)
def test_a_published_checkpoint_goes_through_all_stages(
    family, corpus, ctc_folder, omniasr_folder, tmp_path, monkeypatch, capsys
):
    if family is omniasr:
        omniasr_folder(tmp_path / "up")
    else:
        publish(tmp_path / "up", family, ctc_folder)
    monkeypatch.chdir(tmp_path)

    def run(program, *options):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, options)])
        program.main()

    run(prepare_librispeech, "--corpus", corpus, "--out", "data")
    run(check_data, "--data", "data", "--nj", 1, "--sets", "train_clean_100", "dev", "test_clean", "test_other")
    sets = ("--train_set", "train_clean_100", "--valid_set", "dev", "--test_sets", "test_clean", "test_other")
    drop = ("--unknown_characters", "drop")
    run(prepare_dump, "--data", "data", "--upstream", "up", "--own_baseline", "--out", "dump", *sets, *drop)
    common = ("--token_list", "dump/token_list/char/tokens.txt", "--frontend_conf", "upstream=up", *drop)
    common = ("--config", CONF / "mini.yaml", "--frontend_conf", "upstream_conf={layerdrop: 0.0}", *common)
    run(fold, "--exp", "baseline", "--untrained", *common, "--pruning", "method=dense")
    training = ["--output_dir", "run", "--max_epoch", "1", "--batch_size", "8", "--num_workers", "0", *common]
    for mode, name in (("train", "train_clean_100"), ("valid", "dev")):
        training += [f"--{mode}_data_path_and_name_and_type", f"dump/{name}/wav.scp,speech,sound"]
        training += [f"--{mode}_data_path_and_name_and_type", f"dump/{name}/text,text,text"]
        training += [f"--{mode}_shape_file", f"dump/{name}/utt2num_samples"]
    asr_train.main(list(map(str, training)))
    run(fold, "--exp", "run")
    data = ("--data", "dump/test_clean", "dump/test_other")
    for exp in ("baseline", "run"):
        run(asr_decode, "--model", f"{exp}/folded", *data, "--out", f"{exp}/decode_ctc_greedy")
    names = ("--references", "dump", "--sets", "test_clean", "test_other", "--upstream", "up")
    run(score, "--exp", "run", "--baseline", "baseline", *names)
    few = (
        () if family is unispeech_sat else ("--formats", "hf", "sparse", "espnet")
    )  # test_int8 has the others' ONNX files
    run(export, "--exp", "run", *data, "--values", "fp32", "int8", *few)

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0.65 <= results["sparsity"] <= 0.651 and results["wer"]["test_clean"]["words"] > 5
    assert results["baseline"]["epochs"] == 0 and results["params_total"] == results["baseline"]["params_total"]
    texts, references = (read_table(tmp_path / "dump" / name / "text") for name in ("train_clean_100", "test_clean"))
    apostrophes = "".join(references.values()).count("'")
    assert apostrophes and ("'" in "".join(texts.values())) == (family is not wavlm)
    page = (tmp_path / "run" / "RESULTS.md").read_text()
    assert ('Not in the vocabulary, in all sets: "\'" (U+0027)' in page) == (family is wavlm)
    model = espnet_pinch.load(tmp_path / "run" / "export")
    sparse = tmp_path / "run" / "export" / "sparse_fp32.safetensors"
    assert count_layers(espnet_pinch.load(sparse)) == count_layers(model)
    assert len(count_layers(model)) == 2 * (8 if family is conformer else 6)
    id_, audio = next(iter(read_table(tmp_path / "dump" / "test_clean" / "wav.scp").items()))
    [text] = said = transcribe(model, [torch.from_numpy(soundfile.read(audio, dtype="float32")[0])])
    assert said == [read_table(tmp_path / "run" / "decode_ctc_greedy" / "test_clean" / "text")[id_]]
    capsys.readouterr()
    run(cli, "transcribe", sparse, audio)
    assert capsys.readouterr().out == f"{audio}\t{text}\n"
