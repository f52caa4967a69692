import functools
import json

import pytest
import tokenizers
import torch
from transformers import (
    AutoModelForCTC,
    OmniASRAudioConfig,
    OmniASRCTCConfig,
    OmniASRCTCProcessor,
    OmniASRFeatureExtractor,
    ParakeetTokenizer,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
)

from espnet_pinch.files import write_text
from espnet_pinch.results.records import Results, SystemFigures
from espnet_pinch.results.scoring import error_rates
from espnet_pinch.results.significance import compare

TINY = dict(
    conv_dim=(8, 8),
    conv_kernel=(10, 8),
    conv_stride=(10, 32),
    num_feat_extract_layers=2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    layerdrop=0.0,
    vocab_size=32,
    pad_token_id=0,
)


def pytest_collection_modifyitems(items):
    """The file that takes longest comes first: begun last, it would leave the other process without work."""
    items.sort(key=lambda item: item.path.name != "test_recipe.py")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> dict:
    """Fields of a configuration that makes any of the upstreams tiny."""
    return dict(TINY)


@pytest.fixture
def tiny_wav2vec2() -> Wav2Vec2Config:
    return Wav2Vec2Config(**TINY)


@pytest.fixture
def ctc_folder(tiny_config):
    """Makes a Hugging Face folder of a random CTC model with a vocabulary; returns its path."""
    return functools.partial(make_ctc_folder, tiny_config)


@pytest.fixture
def omniasr_folder(tiny_config):
    """Makes a folder in the layout of Omnilingual ASR's published CTC models, random weights; returns its path."""
    return functools.partial(make_omniasr_folder, tiny_config)


def write_results(
    folder, method, target, wrong, reached=None, upstream="mini", seed=0, settings=None, speed_up=None, macs=None
):
    """Results and transcripts of a run with ``wrong[SET]``, at most 100, wrong words of 1000; its baseline has 50.

    Args:
        speed_up: how many times as fast as the baseline the run was measured to be.
        macs: fraction of the multiplications that is left.
    """
    dump = folder.parent / "dump"
    references = {f"u{i}": "A B C D E F G H I J" for i in range(100)}
    baseline = _wrong(references, 50)
    texts = {name: _wrong(references, errors) for name, errors in wrong.items()}
    tests = {errors: compare(references, baseline, _wrong(references, errors)) for errors in set(wrong.values())}
    for name, hypotheses in texts.items():
        for path, table in ((dump / name / "text", references), (folder / "decoded" / name / "text", hypotheses)):
            write_text(path, "".join(f"{id_} {words}\n" for id_, words in table.items()))

    def figures(tables, sparsity):
        return SystemFigures(
            experiment=str(folder),
            sparsity=sparsity,
            params_total=1_000_000,
            params_kept=round(1_000_000 * (1 - sparsity)),
            params_stored=1_000_000,
            extra_trained_parameters=72,
            compression_ratio=1 / (1 - sparsity),
            macs=macs and 1e9 * (macs if sparsity else 1.0),
            macs_total=macs and 1e9,
            forward_seconds=speed_up and 0.4 / (speed_up if sparsity else 1.0),
            wer={name: error_rates([(references[id_], table[id_]) for id_ in table]) for name, table in tables.items()},
            seconds=7200.0,
            peak_memory_bytes=10**9,
            epochs=3,
            iterations=100,
            device="some CPU",
        )

    Results(
        upstream=upstream,
        corpus="made up",
        method=method,
        target_sparsity=target,
        seed=seed,
        settings=settings or {},
        figures=figures(texts, reached or target),
        decoded="decoded",
        references=str(dump),
        baseline=figures(dict.fromkeys(texts, baseline), 0.0),
        significance={name: tests[errors] for name, errors in wrong.items()},
        command="made up",
    ).write(folder / "results.json")


def _wrong(references, count):
    """The references with the fifth word wrong in the first ``count`` of them."""
    return {id_: text.replace("E", "X") if i < count else text for i, (id_, text) in enumerate(references.items())}


def make_ctc_folder(fields, folder, names, config_class=Wav2Vec2Config, tokenizer=None, **changes):
    """
    Args:
        fields: of the configuration.
        names: tokens in the order of the head's rows.
        tokenizer: settings of Wav2Vec2CTCTokenizer; no tokenizer files without.
        changes: of the fields; the blank is the first token where they do not say.
    """
    config = config_class(**{**fields, "vocab_size": len(names), **changes})
    model = AutoModelForCTC.from_config(config)
    torch.nn.init.normal_(model.lm_head.weight, std=3.0)  # so that it says something
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({name: row for row, name in enumerate(names)}), encoding="utf-8")
    if tokenizer is not None:
        Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **tokenizer).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def make_omniasr_folder(fields, folder, characters="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'", **changes):
    """
    Args:
        fields: of a wav2vec2 configuration; those that the other one has not are left out.
        characters: tokens behind the special ones and the space.
        changes: of the fields of the Transformer.
    """
    names = ["<s>", "<pad>", "</s>", "<unk>", " ", *characters]
    whole = tokenizers.Tokenizer(tokenizers.models.Unigram([(name, -1.0) for name in names], unk_id=3))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", behavior="merged_with_next")
    whole.decoder = tokenizers.decoders.Fuse()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = ParakeetTokenizer(tokenizer_object=whole, clean_up_tokenization_spaces=False, **special)
    of_both = {key: value for key, value in fields.items() if hasattr(OmniASRAudioConfig(), key)}
    audio = OmniASRAudioConfig(**{**of_both, "pad_token_id": None, **changes})
    rows = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "blank_token_id": 0}
    model = AutoModelForCTC.from_config(OmniASRCTCConfig(audio_config=audio, vocab_size=len(names), **rows))
    torch.nn.init.normal_(model.ctc_head.weight, std=3.0)  # so that it says something
    model.save_pretrained(folder)
    OmniASRCTCProcessor(OmniASRFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def model(tiny_config):
    """A small random model, pruned by magnitude."""
    from small_models import make_model  # it imports espnet, which many tests go without

    return make_model(tiny_config)
