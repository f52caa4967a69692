"""Upstreams as transformers runs them: our frontend and head against its own logits, heads, vocabularies, errors."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCTC,
    Data2VecAudioConfig,
    HubertConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
)

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.asr.upstream import load_upstream, save_ctc_model
from espnet_pinch.core.attach import find_linears

LETTERS = list("EATOIN")


def vocabulary(blank_last: bool) -> dict[str, int]:
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    if blank_last:
        names = [*names[1:], "<pad>"]
    return {name: i for i, name in enumerate(names)}


def save(folder, config, blank_last=False, **processing):
    """A random CTC model with its processor and vocabulary, as save_pretrained leaves them."""
    names = vocabulary(blank_last)
    config.vocab_size, config.pad_token_id = len(names), names["<pad>"]
    model = AutoModelForCTC.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(names))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    processor = Wav2Vec2FeatureExtractor(**processing)
    processor.save_pretrained(folder)
    return model, processor


def compare(folder, model, processor, lengths):
    """Largest difference between our logits and transformers', over each utterance's own frames."""
    audio = [np.random.default_rng(i).normal(0.1, 0.2, n).astype(np.float32) for i, n in enumerate(lengths)]
    inputs = processor(audio, sampling_rate=16000, padding=True, return_tensors="pt")
    frontend = UpstreamFrontend(str(folder)).eval()
    head, tokens = frontend.take_head(), frontend.tokens
    speech = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in audio], batch_first=True)
    with torch.no_grad():
        want = model(**inputs).logits
        hidden, frames = frontend(speech, torch.tensor(lengths))
        got = head(hidden)
    assert got.shape == want.shape and int(frames.max()) == want.size(1)
    assert frames.tolist() == [int(model._get_feat_extract_output_lengths(n)) for n in lengths]
    blank = model.config.pad_token_id
    order = [blank] + [i for i in range(len(tokens)) if i != blank]
    return max(float((got[i, :n] - want[i, :n, order]).abs().max()) for i, n in enumerate(frames.tolist()))


CASES = [
    (Wav2Vec2Config, {"feat_extract_norm": "group"}, {"do_normalize": True, "return_attention_mask": False}),
    (
        Wav2Vec2Config,
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
        {"do_normalize": True, "return_attention_mask": True},
    ),
    (
        HubertConfig,
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
        {"do_normalize": True, "return_attention_mask": True},
    ),
    (WavLMConfig, {"feat_extract_norm": "group"}, {"do_normalize": False, "return_attention_mask": True}),
    (Data2VecAudioConfig, {}, {"do_normalize": True, "return_attention_mask": True}),
    (UniSpeechConfig, {"feat_extract_norm": "group"}, {"do_normalize": True, "return_attention_mask": False}),
    (UniSpeechSatConfig, {"feat_extract_norm": "layer"}, {"do_normalize": True, "return_attention_mask": True}),
    *(
        (
            Wav2Vec2ConformerConfig,
            {"feat_extract_norm": "layer", "position_embeddings_type": positions},
            {"do_normalize": True, "return_attention_mask": True},
        )
        for positions in ("relative", "rotary")
    ),
]


@pytest.mark.parametrize("config_class, fields, processing", CASES)
@pytest.mark.parametrize("lengths", [[4000], [9000, 4000, 6543]])
@pytest.mark.parametrize("blank_last", [False, True])
def test_logits_are_transformers_own(tmp_path, tiny_config, config_class, fields, processing, lengths, blank_last):
    model, processor = save(tmp_path, config_class(**{**tiny_config, **fields}), blank_last, **processing)
    assert compare(tmp_path, model, processor, lengths) < 1e-4


@pytest.mark.parametrize("config_class, fields, processing", CASES)
def test_every_linear_of_a_block_is_gated_but_those_of_positions(tiny_config, config_class, fields, processing):
    model = AutoModel.from_config(config_class(**{**tiny_config, **fields}))
    linears = {name for name, m in model.encoder.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    wanted = {name for name in linears if not name.endswith(("linear_pos", "gru_rel_pos_linear"))}
    family = find_family(model.config.model_type)
    gated = find_linears(model, family.layers)
    assert {name.removeprefix("encoder.layers.") for name in gated} == wanted
    assert len(wanted) == 2 * (8 if "conformer" in model.config.model_type else 6)
    assert {name.partition("layers.")[2].partition(".")[2] for name in gated} == set(family.short_names)
    assert len(set(family.short_names.values())) == len(family.short_names)


@pytest.mark.parametrize("config_class, fields, processing", CASES)
def test_frames_are_counted_as_transformers_counts_them(tiny_config, config_class, fields, processing):
    model = AutoModel.from_config(config_class(**{**tiny_config, **fields}))
    family, lengths = find_family(model.config.model_type), torch.arange(1000)
    frames = family.frames_of(model.config, lengths)
    assert torch.equal(frames, model._get_feat_extract_output_lengths(lengths))
    assert frames.tolist() == [family.frames_of(model.config, n) for n in range(1000)]
    assert family.stride(model.config) == 320


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, processing",
    [
        (Wav2Vec2Config(), {"do_normalize": True, "return_attention_mask": False}),
        (
            HubertConfig(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                conv_bias=True,
            ),
            {"do_normalize": True, "return_attention_mask": True},
        ),
        (WavLMConfig(), {"do_normalize": False, "return_attention_mask": True}),
    ],
    ids=["wav2vec2-base", "hubert-large", "wavlm-base"],
)
def test_logits_are_transformers_own_at_real_size(tmp_path, config, processing):
    model, processor = save(tmp_path, config, **processing)
    assert compare(tmp_path, model, processor, [32000]) < 1e-4
    assert compare(tmp_path, model, processor, [48000, 20000, 33333]) < 1e-4


def test_a_head_with_its_blank_last_is_turned_round(tmp_path, tiny_config):
    save(tmp_path, Wav2Vec2Config(**tiny_config), blank_last=True)
    upstream = load_upstream(str(tmp_path))
    assert upstream.tokens == ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *LETTERS]


def test_a_saved_model_is_the_same_model(tmp_path, tiny_config):
    save(tmp_path / "one", Wav2Vec2Config(**tiny_config), blank_last=True, do_normalize=False)
    first = load_upstream(str(tmp_path / "one"))
    save_ctc_model(tmp_path / "two", first.model, first.head, first.tokens, first.processing)
    second = load_upstream(str(tmp_path / "two"))
    assert second.tokens == first.tokens and second.processing == first.processing
    for a, b in zip(
        [*first.model.state_dict().values(), *first.head.state_dict().values()],
        [*second.model.state_dict().values(), *second.head.state_dict().values()],
    ):
        assert torch.equal(a, b)


def test_a_frontend_is_built_again_without_its_upstream(tmp_path, tiny_config):
    save(tmp_path, Wav2Vec2Config(**tiny_config))
    first = UpstreamFrontend(str(tmp_path), {"hidden_dropout": 0.3}).eval()
    again = UpstreamFrontend("/nowhere", built=json.loads(json.dumps(first.built))).eval()
    again.load_state_dict(first.state_dict())
    audio, lengths = torch.randn(1, 4000), torch.tensor([4000])
    assert torch.equal(first(audio, lengths)[0], again(audio, lengths)[0])
    assert again.upstream.config.hidden_dropout == 0.3 and again.take_head() is None


def test_the_feature_encoder_is_frozen_as_configured(tmp_path, tiny_wav2vec2):
    save(tmp_path, tiny_wav2vec2)
    for freeze in (True, False):
        frontend = UpstreamFrontend(str(tmp_path), freeze_feature_encoder=freeze)
        assert all(p.requires_grad is not freeze for p in frontend.upstream.feature_extractor.parameters())
        assert all(p.requires_grad for p in frontend.upstream.encoder.parameters())


def test_a_model_without_head_has_none(tmp_path, tiny_wav2vec2):
    Wav2Vec2Model(tiny_wav2vec2).save_pretrained(tmp_path)
    upstream = load_upstream(str(tmp_path))
    assert upstream.head is None and upstream.tokens is None
    assert upstream.processing.do_normalize and not upstream.processing.return_attention_mask


def test_a_head_without_vocabulary_is_kept_in_its_order(tmp_path, tiny_config):
    model = AutoModelForCTC.from_config(Wav2Vec2Config(**tiny_config))
    model.save_pretrained(tmp_path)
    upstream = load_upstream(str(tmp_path))
    assert upstream.tokens is None and torch.equal(upstream.head.weight, model.lm_head.weight)


def test_wrong_folders_are_named(tmp_path, tiny_wav2vec2):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_upstream(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_upstream(str(tmp_path / "empty"))
    tiny_wav2vec2.save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_upstream(str(tmp_path / "bare"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "bert" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="of type bert; supported: wav2vec2, hubert.*wav2vec2-conformer"):
        load_upstream(str(tmp_path / "bert"))
    (tmp_path / "adapted").mkdir()
    Wav2Vec2Config(add_adapter=True).save_pretrained(tmp_path / "adapted")
    (tmp_path / "adapted" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="adapted has convolutional adapters on top"):
        load_upstream(str(tmp_path / "adapted"))
    Wav2Vec2Model(tiny_wav2vec2).save_pretrained(tmp_path / "small")
    tiny_wav2vec2.num_hidden_layers = 3
    tiny_wav2vec2.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="do not fit its config.json"):
        load_upstream(str(tmp_path / "small"))
    with pytest.raises(ValueError, match="no field 'hiden_dropout'"):
        load_upstream(str(tmp_path / "small"), {"hiden_dropout": 0.0})


@pytest.mark.parametrize("config_class, fields, processing", CASES)
def test_a_batch_shorter_than_specaugments_mask_is_not_masked(tmp_path, tiny_config, config_class, fields, processing):
    masks = {"mask_time_prob": 0.5, "mask_time_length": 10, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    masks |= {"activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "conformer_conv_dropout": 0.0}
    save(tmp_path, config_class(**{**tiny_config, **fields, **masks}), **processing)
    frontend = UpstreamFrontend(str(tmp_path))
    for module in frontend.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.train = lambda mode, module=module: module  # it computes something else in training mode
            module.training = False
    speech, lengths = torch.randn(2, 3328), torch.tensor([3328, 1760])  # 11 frames and 6
    short, shorter = speech[:, :2900], lengths.clamp(max=2900)  # 9 frames
    wanted = frontend.eval()(short, shorter)[0]
    hidden, frames = frontend.train()(short, shorter)
    assert int(frames.max()) == 9 and torch.allclose(hidden, wanted, atol=1e-5)
    hidden.sum().backward()
    assert frontend.upstream.masked_spec_embed.grad is not None  # several processes wait for every gradient
    assert not torch.allclose(frontend(speech, lengths)[0], frontend.eval()(speech, lengths)[0], atol=1e-2)


def test_an_extended_head_says_what_the_head_said(tmp_path, tiny_config):
    """The new rows are that of "<unk>", the others stay."""
    names = vocabulary(blank_last=False)
    save(tmp_path, Wav2Vec2Config(**tiny_config))
    common = ["--frontend_conf", f"upstream={tmp_path}", "--output_dir", str(tmp_path / "out")]
    tokens = load_upstream(str(tmp_path)).tokens
    models = {}
    for name, more in (("as it is", []), ("extended", ["'", "Q"])):
        (tmp_path / name).write_text("".join(f"{token}\n" for token in [*tokens, *more]))
        options = [*common, "--token_list", str(tmp_path / name), "--unknown_characters", "extend"]
        models[name] = PruningASRTask.build_model(PruningASRTask.get_parser().parse_args(options)).eval()
    speech, lengths = torch.randn(1, 16000), torch.tensor([16000])
    before, after = (model.ctc.ctc_lo(model.encode(speech, lengths)[0]) for model in models.values())
    torch.testing.assert_close(after, before[..., [*range(len(names)), 3, 3]], rtol=0, atol=1e-5)
    found = after.argmax(-1)  # a rounding may choose between equal rows
    assert torch.equal(torch.where(found < len(names), found, 3), before.argmax(-1))
    for own, longer in zip(*(model.ctc.ctc_lo.parameters() for model in models.values())):
        assert torch.equal(longer, own[[*range(len(names)), 3, 3]])
    options[-1] = "drop"
    with pytest.raises(ValueError, match="the token list differs from the vocabulary"):
        PruningASRTask.build_model(PruningASRTask.get_parser().parse_args(options))
