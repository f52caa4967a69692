"""Speech foundation models of transformers: load one, with its CTC head, vocabulary and waveform processing."""

import dataclasses
import json
import logging
import os
import re
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
)

from espnet_pinch.asr.safe_load import tensors_only
from espnet_pinch.data.upstream_files import check_folder

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")

# A learned vector that only SpecAugment's masking uses; some published checkpoints were saved without it.
MAY_BE_MISSING = ("masked_spec_embed",)


@dataclasses.dataclass(frozen=True)
class WaveformProcessing:
    """What a checkpoint's processor does to the waveform before the model sees it.

    Attributes:
        sampling_rate: Hz.
        do_normalize: zero mean and unit variance, utterance by utterance.
        return_attention_mask: padded samples are masked in the model.
    """

    sampling_rate: int = 16000
    do_normalize: bool = True
    return_attention_mask: bool = False


@dataclasses.dataclass
class Upstream:
    """A loaded foundation model.

    Attributes:
        model: the Transformer without a head.
        processing: what its processor does to the waveform.
        head: the CTC head, rows in the order of ``tokens``; None where the checkpoint has none.
        tokens: the head's outputs under ESPnet's names, "<blank>" first; None where the checkpoint does not name them.
    """

    model: PreTrainedModel
    processing: WaveformProcessing
    head: nn.Linear | None = None
    tokens: list[str] | None = None


def read_config(upstream: str) -> PretrainedConfig:
    """The configuration of an upstream in a folder. Nothing is fetched: that is stage 0's.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        ValueError: a model of another kind, or one that brings code of its own.
    """
    check_folder(upstream)
    try:
        # Where this is left open, transformers asks on the terminal whether to run code that comes with a model.
        config = AutoConfig.from_pretrained(upstream, trust_remote_code=False, local_files_only=True)
    except ValueError as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise ValueError(f"{upstream} is not a model of type {', '.join(MODEL_TYPES)}: {reason}") from None
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"{upstream} is a model of type {config.model_type}; supported: {', '.join(MODEL_TYPES)}")
    if getattr(config, "add_adapter", False):
        raise ValueError(f"{upstream} has convolutional adapters on top (add_adapter), which are not supported")
    return config


def has_ctc_head(config: PretrainedConfig) -> bool:
    return any(name.endswith("ForCTC") for name in config.architectures or [])


def read_processing(upstream: str, config: PretrainedConfig) -> WaveformProcessing:
    """The waveform processing of the checkpoint's own processor.

    A folder without preprocessor_config.json gets transformers' defaults for such a model: normalised, and masked
    where the convolutions are layer-normalised.
    """
    try:
        processor = Wav2Vec2FeatureExtractor.from_pretrained(upstream, local_files_only=True)
    except OSError:
        masked = getattr(config, "feat_extract_norm", "layer") == "layer"
        logging.warning(f"{upstream} has no preprocessor_config.json: waveform normalised, attention mask {masked}")
        return WaveformProcessing(return_attention_mask=masked)
    return WaveformProcessing(processor.sampling_rate, processor.do_normalize, bool(processor.return_attention_mask))


def read_tokens(upstream: str, config: PretrainedConfig) -> tuple[list[str], list[int]]:
    """The vocabulary of a CTC head under ESPnet's names, and the head's row for each token.

    ESPnet has the blank first, writes a space as "<space>" and both ends of a sentence as "<sos/eos>".

    Returns: tokens, rows.

    Raises:
        FileNotFoundError: no vocabulary.
        ValueError: a vocabulary without a token that is needed.
    """
    try:
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(upstream, local_files_only=True)
    except (OSError, TypeError):
        raise FileNotFoundError(f"{upstream} has a CTC head and no readable vocab.json") from None
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    blank = tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
    espnet_names = {
        tokenizer.unk_token: "<unk>",
        tokenizer.word_delimiter_token: "<space>",
        tokenizer.eos_token: "<sos/eos>",
    }
    rows = [blank] + [i for i in range(config.vocab_size) if i != blank]
    tokens = ["<blank>"]
    for row in rows[1:]:
        token = names.get(row, f"<unused{row}>")
        tokens.append(espnet_names.get(token, token))
    for needed in ("<space>", "<unk>"):
        if needed not in tokens:
            raise ValueError(f"the vocabulary of {upstream} has no token for {needed}")
    return tokens, rows


def load_upstream(upstream: str, overrides: dict | None = None) -> Upstream:
    """Load a foundation model from a Hugging Face folder. Nothing is fetched: that is stage 0's.

    Args:
        upstream: the folder.
        overrides: fields of its configuration to change, such as dropout or SpecAugment.

    Raises:
        FileNotFoundError, ValueError: as ``read_config``, or weights that do not fit the configuration, are damaged or
            hold more than tensors.
    """
    config = read_config(upstream)
    ctc = has_ctc_head(config)
    apply_overrides(config, overrides)
    auto = AutoModelForCTC if ctc else AutoModel
    with tensors_only():
        model, info = auto.from_pretrained(
            upstream, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    missing = sorted(k for k in info["missing_keys"] if not k.endswith(MAY_BE_MISSING))
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(k) for k in info["mismatched_keys"])
        raise ValueError(f"the weights of {upstream} do not fit its config.json: {len(wrong)} wrong, first {wrong[0]}")
    processing = read_processing(upstream, config)
    if not ctc:
        return Upstream(model, processing)
    head = model.lm_head
    try:
        tokens, rows = read_tokens(upstream, config)
    except FileNotFoundError as error:
        logging.warning(f"{error}: the head's outputs have no names")
        return Upstream(model.base_model, processing, head)
    with torch.no_grad():
        head.weight.copy_(head.weight[rows])
        head.bias.copy_(head.bias[rows])
    return Upstream(model.base_model, processing, head, tokens)


def apply_overrides(config: PretrainedConfig, overrides: dict | None) -> None:
    """Change fields of ``config``; ValueError for one it does not have."""
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise ValueError(f"a {config.model_type} configuration has no field {key!r}")
        setattr(config, key, value)


def config_as_dict(config: PretrainedConfig) -> dict:
    """All fields of ``config`` as plain YAML types."""
    return json.loads(config.to_json_string(use_diff=False))


def model_from_dict(config: dict) -> PreTrainedModel:
    """A model without head of the given configuration, its weights not yet loaded. Fetches nothing."""
    return AutoModel.from_config(AutoConfig.for_model(**config))


def save_ctc_model(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    head: nn.Linear,
    tokens: list[str],
    processing: WaveformProcessing,
) -> None:
    """Write a Hugging Face folder that ``load_upstream`` and ``AutoModelForCTC.from_pretrained`` read.

    Args:
        folder: made if it is not there.
        model: the Transformer, gates folded.
        head: (vocabulary, hidden).
        tokens: ESPnet's names of the head's outputs, "<blank>" first.
        processing: goes into preprocessor_config.json.
    """
    config = AutoConfig.for_model(**model.config.to_dict())
    config.vocab_size, config.pad_token_id = len(tokens), 0
    config.dtype = "float32"
    ctc = AutoModelForCTC.from_config(config)
    setattr(ctc, ctc.base_model_prefix, model)
    ctc.lm_head = head
    ctc.save_pretrained(folder)
    for path in Path(folder).iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    save_vocabulary(folder, tokens)
    Wav2Vec2FeatureExtractor(
        sampling_rate=processing.sampling_rate,
        do_normalize=processing.do_normalize,
        return_attention_mask=processing.return_attention_mask,
    ).save_pretrained(folder)


def save_vocabulary(folder: str | os.PathLike, tokens: list[str]) -> None:
    """Write vocab.json and the tokenizer's settings for ESPnet's token list."""
    hf_names = {"<blank>": "<pad>", "<space>": "|", "<sos/eos>": "</s>"}
    vocabulary = {hf_names.get(token, token): i for i, token in enumerate(tokens)}
    path = Path(folder) / "vocab.json"
    path.write_text(json.dumps(vocabulary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    special = {
        name: token if token in vocabulary else None
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))
    }
    Wav2Vec2CTCTokenizer(str(path), word_delimiter_token="|", **special).save_pretrained(folder)
