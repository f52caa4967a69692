"""Omnilingual ASR's CTC models: as transformers computes them, with their own or a new head, masked, cut, refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCTC, AutoProcessor

from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.recogniser import TorchRecogniser
from espnet_pinch.asr.upstream import load_upstream, read_config, require_stock_model, save_ctc_model
from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.errors import UserError
from espnet_pinch.export.check import Probe
from espnet_pinch.export.format import Original, all_formats
from espnet_pinch.export.model import assemble, stock_names

# Quiet recordings show what is added to the variance.
AUDIO = [torch.randn(samples) * loud for samples, loud in ((16000, 0.003), (9000, 0.1), (12345, 0.001))]


def edit(file: Path, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def recogniser(folder, pruning=None):
    """The model of a folder with its own head."""
    frontend = UpstreamFrontend(str(folder))
    head = frontend.take_head()
    model = assemble(frontend, frontend.tokens, pruning or {"method": "dense"})
    model.set_submodule(model.head_name, head)
    return model.eval()


def outputs(model):
    """Logits of each recording, of one padded batch."""
    logits, frames = TorchRecogniser(model)(AUDIO)
    return [rows[:count].clone() for rows, count in zip(logits, frames)]


@torch.no_grad()
def of_transformers(folder):
    """Logits of each recording, of one padded batch, and the transcripts; in transformers' hands alone."""
    stock, processor = AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor([samples.numpy() for samples in AUDIO], sampling_rate=16000)
    logits = stock(**inputs).logits
    frames = stock._get_subsampling_output_length(inputs["padding_mask"].sum(-1))
    texts = processor.decode(stock.generate(**inputs), skip_special_tokens=True)
    return [rows[:count] for rows, count in zip(logits, frames)], [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("blank", [0, 7])
def test_logits_and_texts_are_those_of_transformers_before_and_after_an_export(blank, omniasr_folder, tmp_path):
    folder = omniasr_folder(tmp_path / "up")
    edit(folder / "config.json", blank_token_id=blank)
    read = ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(check_folder(folder)) == read  # of what lies there; stage 0 fetches no more
    model = recogniser(folder)
    first = ["<s>", "<pad>", "<sos/eos>", "<unk>", "<space>", *"abcdef"]
    assert model.token_list[:6] == ["<blank>", *(token for row, token in enumerate(first) if row != blank)][:6]
    names = stock_names(model).values()
    assert set(names) == set(AutoModelForCTC.from_pretrained(folder).state_dict())
    want, texts = of_transformers(folder)
    order = [blank, *(row for row in range(want[0].shape[1]) if row != blank)]
    got = outputs(model)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs[:, order], rtol=0, atol=1e-5)
    said = transcribe(model, AUDIO)
    if blank == 0:  # transformers' tokenizer takes row 0 for the blank
        assert said == texts and len(set(said)) == 3

    frontend = model.frontend
    save_ctc_model(tmp_path / "out", frontend.upstream, model.head, model.token_list, frontend.processing)
    again, texts = of_transformers(tmp_path / "out")
    torch.testing.assert_close(again, got, rtol=0, atol=1e-5)
    assert texts == said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["blank_token_id"], config["pad_token_id"], config["architectures"]) == (0, 0, ["OmniASRForCTC"])
    assert load_upstream(str(tmp_path / "out")).tokens == model.token_list
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    rows = [model.token_list.index(token) for token in ("b", "A", "<space>", "'", "<unk>")]
    assert tokenizer("bA  '7 ")["input_ids"] == rows


CHARACTERS = ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", "A", "<U+00A0>", "\u0915"]
SUBWORDS = ["<blank>", "<unk>", "\u2581", "\u2581ON", "E", "\u2581T", "O", "N", "<sos/eos>"]


@pytest.mark.parametrize("tokens", [CHARACTERS, SUBWORDS])
def test_a_new_head_is_exported_with_the_tokens_of_the_corpus(tokens, omniasr_folder, tmp_path):
    whole = AutoModelForCTC.from_pretrained(omniasr_folder(tmp_path / "up"))
    whole.model.save_pretrained(tmp_path / "headless")
    (tmp_path / "headless" / "preprocessor_config.json").write_text(json.dumps({"return_attention_mask": False}))
    frontend = UpstreamFrontend(str(tmp_path / "headless"))
    assert not frontend.has_head and frontend.processing.return_attention_mask  # which the processor makes anyway
    model = assemble(frontend, tokens, {"method": "dense"}).eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    save_ctc_model(tmp_path / "out", frontend.upstream, model.head, tokens, frontend.processing)
    logits, texts = of_transformers(tmp_path / "out")
    torch.testing.assert_close(logits, outputs(model), rtol=0, atol=1e-5)
    assert texts == transcribe(model, AUDIO) and load_upstream(str(tmp_path / "out")).tokens == tokens


@pytest.mark.parametrize("uniform", [True, False])
def test_what_is_folded_is_what_was_masked(uniform, omniasr_folder, tmp_path):
    """Whole units; where all blocks are alike, transformers loads the smaller model."""
    units = {"unit": "structured", "conv": True, "multiple": 2, "uniform": uniform}
    folder = omniasr_folder(tmp_path / "up")
    model = recogniser(folder, {"method": "pinch", "target_sparsity": 0.3, "pinch": units})
    model.pruning.land()
    want, before = outputs(model), sum(p.numel() for p in model.parameters())
    widths = model.fold()
    assert any("subsampling" in name for name in widths) and any("feed_forward" in name for name in widths)
    torch.testing.assert_close(outputs(model), want, rtol=0, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) < before
    frontend = model.frontend
    save_ctc_model(tmp_path / "out", frontend.upstream, model.head, model.token_list, frontend.processing)
    torch.testing.assert_close(outputs(recogniser(tmp_path / "out")), want, rtol=0, atol=1e-4)
    if uniform:
        torch.testing.assert_close(of_transformers(tmp_path / "out")[0], want, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_sherpa_onnx_gets_a_graph_that_leaves_the_normalising_to_it(omniasr_folder, tmp_path):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install -e '.[sherpa]'")
    model, sherpa = recogniser(omniasr_folder(tmp_path / "up")), all_formats()["sherpa_onnx"]
    original = Original(model, tmp_path, Probe.of(model, AUDIO), ["fp32"])
    [file] = sherpa.write(tmp_path, original)
    assert sherpa.check(tmp_path / file, original).logit_difference < 1e-4  # and the texts of sherpa-onnx


def put(folder: Path, row: int, token: str) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["vocab"][row][0] = token
    edit(folder / "tokenizer.json", model=model)


def words(folder: Path, **rows: int) -> None:
    """Give the folder a tokenizer of another kind."""
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, " ": 4}
    edit(folder / "tokenizer.json", model={"type": "WordLevel", "vocab": {**special, **rows}, "unk_token": "<unk>"})


MISTAKES = {
    "twice": (lambda f: put(f, 57, "a"), "tokenizer.json is damaged: 'a' is there twice, in row 5 and 57"),
    "one row": (lambda f: words(f, a=5, b=5, c=7), "damaged: 'a' and 'b' have the same row 5|'b' and 'a' have"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing; it names the outputs"),
    "damaged": (lambda f: (f / "tokenizer.json").write_text("{"), "the tokenizer of .* cannot be read"),
    "no blank": (lambda f: edit(f / "config.json", blank_token_id=99), r"the blank \(blank_token_id\) in row 99"),
    "small head": (
        lambda f: edit(f / "config.json", vocab_size=9),
        "tokenizer.json has the token 'e' in row 9, but the head has 9 rows",
    ),
    "another encoder": (
        lambda f: edit(f / "config.json", audio_config={"model_type": "wav2vec2"}),
        "has an audio_config of type wav2vec2, not omniasr_audio",
    ),
    "odd": (
        lambda f: edit(f / "config.json", audio_config={"model_type": "omniasr_audio", "num_conv_pos_embeddings": 5}),
        "has an odd num_conv_pos_embeddings, 5",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, omniasr_folder, tmp_path):
    from espnet_pinch.asr.vocabulary import read_tokens

    folder = omniasr_folder(tmp_path / "up")
    spoil, line = MISTAKES[mistake]
    spoil(folder)
    with pytest.raises((UserError, FileNotFoundError), match=line) as error:
        read_tokens(folder, read_config(str(folder)))
    assert "\n" not in str(error.value)


def test_what_transformers_has_not_is_refused(omniasr_folder, tmp_path):
    folder = str(omniasr_folder(tmp_path / "up"))
    with pytest.raises(UserError, match="of type omniasr_ctc, of which transformers has no utterance classifier"):
        require_stock_model(folder, read_config(folder), "classify")
    with pytest.raises(UserError, match="a omniasr_ctc configuration has no field 'mask_time_prob'"):
        load_upstream(folder, {"mask_time_prob": 0.1})
    assert load_upstream(folder, {"layerdrop": 0.3}).model.config.audio_config.layerdrop == 0.3
