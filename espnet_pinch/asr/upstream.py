"""Load and save speech foundation models of transformers with their heads, vocabulary and waveform processing."""

import dataclasses
import json
import logging
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    PretrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)
from transformers.utils import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME

from espnet_pinch.asr.family import all_families, find_family, widths_of
from espnet_pinch.asr.head import ASR, find_head
from espnet_pinch.asr.safe_load import tensors_only
from espnet_pinch.asr.weight_files import weight_names
from espnet_pinch.core.settings import shown
from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.files import write_json

RATES = range(1000, 1_000_000)  # Hz
MOST_LABELS = 100_000  # transformers gives each a name
# Settings in a configuration that say how a model runs. A name of attention code would be looked up on the hub.
HOW_IT_RUNS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "return_dict")


@dataclasses.dataclass(frozen=True)
class WaveformProcessing:
    """What a checkpoint's processor does to the waveform before the model sees it.

    Attributes:
        sampling_rate: Hz.
        do_normalize: each utterance gets zero mean and unit variance.
        return_attention_mask: the model masks padded samples.
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
        head: rows in the order of ``tokens``; None if the checkpoint has none of the task.
        tokens: names of the head's outputs, ESPnet's for tokens, "<blank>" first; None if the checkpoint does not name
            them.
    """

    model: PreTrainedModel
    processing: WaveformProcessing
    head: nn.Module | None = None
    tokens: list[str] | None = None


def read_config(upstream: str, language: str | None = None) -> PretrainedConfig:
    """The configuration of an upstream in a folder. Nothing is downloaded; stage 0 does that.

    Args:
        language: whose adapter weights are to be merged in.

    Raises:
        FileNotFoundError: the folder, its config.json or its weights are missing.
        UserError: the model is of another type, has something that is not supported, or needs code of its own.
    """
    check_folder(upstream, language)
    try:
        # By default transformers asks on the terminal whether to run code that comes with a model.
        config = AutoConfig.from_pretrained(upstream, trust_remote_code=False, local_files_only=True)
    except OSError:
        raise
    except Exception as error:  # transformers checks the fields, and raises many types
        reason = re.split(r"\n\S|\. ", str(error))[0]
        raise UserError(f"{upstream} is not a model of type {', '.join(all_families())}: {one_line(reason)}") from None
    try:
        objection = find_family(config.model_type).objection(config)
    except UserError as error:
        raise UserError(f"{upstream} is {error}") from None
    if objection:
        raise UserError(f"{upstream} has {objection}")
    return config


def has_head(upstream: str, config: PretrainedConfig, task: str = ASR) -> bool:
    """Whether the checkpoint has the head of a task."""
    return find_head(task).is_in(upstream, config)


def require_head(upstream: str, config: PretrainedConfig, task: str = ASR) -> None:
    """Raise UserError, which says what to do, if an upstream cannot be its own baseline: it has no head of the task."""
    if not has_head(upstream, config, task):
        folder = "conf" if task == ASR else f"conf/{task}"
        example = "hubert_large" if task == ASR else "micro"
        raise UserError(
            f"{upstream} has no {find_head(task).kind} head, so it cannot be its own baseline: a baseline has to be "
            f"trained first. Write {folder}/UPSTREAM_baseline.yaml, such as {folder}/{example}_baseline.yaml, or give "
            "--baseline_config"
        )


def require_stock_model(upstream: str, config: PretrainedConfig, task: str) -> None:
    """Raise UserError if transformers has no model for a task on such an upstream."""
    if type(config) not in getattr(transformers, find_head(task).auto)._model_mapping:
        raise UserError(
            f"{upstream} is of type {config.model_type}, of which transformers has no {find_head(task).what}: take an "
            "upstream of another type"
        )


def read_processing(upstream: str, config: PretrainedConfig) -> WaveformProcessing:
    """The waveform processing of the checkpoint's own processor.

    A folder without preprocessor_config.json gets transformers' defaults for such a model: normalised, and masked if
    its family says so.

    Raises:
        UserError: the processor cannot be read, or its sample rate is not in ``RATES``.
    """
    files = [Path(upstream) / name for name in (FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME)]
    try:
        processor = Wav2Vec2FeatureExtractor.from_pretrained(upstream, local_files_only=True)
    except Exception as error:
        there = next((file for file in files if file.is_file()), None)
        if there:
            raise UserError(f"{there} cannot be read: {one_line(error)}") from None
        masked = find_family(config.model_type).masks_padding(config)
        logging.warning(f"{upstream} has no preprocessor_config.json: waveform normalised, attention mask {masked}")
        return WaveformProcessing(return_attention_mask=masked)
    masked = bool(processor.return_attention_mask) or find_family(config.model_type).always_masks
    rate = processor.sampling_rate
    if not isinstance(rate, int) or rate not in RATES:
        raise UserError(f"the processor of {upstream} has a sampling rate of {rate!r} Hz")
    return WaveformProcessing(rate, bool(processor.do_normalize), masked)


def load_upstream(upstream: str, overrides: dict | None = None, task: str = ASR) -> Upstream:
    """Load a foundation model from a Hugging Face folder. Nothing is downloaded; stage 0 does that.

    Args:
        upstream: the folder.
        overrides: fields of its configuration to change, such as dropout or SpecAugment.
        task: whose head is loaded, where the checkpoint has it.

    Raises:
        FileNotFoundError, UserError: as ``read_config``; or the head cannot be used; or the weights do not fit the
            configuration, are damaged or hold more than tensors.
    """
    config = read_config(upstream)
    require_stock_model(upstream, config, task)
    head = find_head(task) if has_head(upstream, config, task) else None
    if head:
        head.check(upstream, config)
    apply_overrides(config, overrides)
    auto = getattr(transformers, head.auto) if head else AutoModel
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with tensors_only():
            model, info = _model_class(auto, config).from_pretrained(upstream, **options, local_files_only=True)
    except SafetensorError as error:
        weight_names(upstream)  # raises an error that names the file, if it finds it
        raise UserError(f"the weights of {upstream} are damaged: {one_line(error)}") from None
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # such as settings of a model that do not fit each other
        raise UserError(f"{upstream} cannot be loaded: {one_line(error)}") from None
    _check_fit(upstream, config, info)
    processing = read_processing(upstream, config)
    if not head:
        return Upstream(model, processing)
    return Upstream(model.base_model, processing, *head.take(upstream, config, model))


def _model_class(auto, config: PretrainedConfig) -> type[PreTrainedModel]:
    """transformers' class for a configuration; of a model that was cut, one that gives it its widths."""
    found = auto._model_mapping[type(config)]
    if not widths_of(config):
        return found

    def init(self, config, *args, **options):
        found.__init__(self, config, *args, **options)
        find_family(config.model_type).narrow(self.base_model, widths_of(config))

    return type(found.__name__, (found,), {"__init__": init})


def _check_fit(upstream: str, config: PretrainedConfig, info: dict) -> None:
    """Raise UserError if weights are missing or have other shapes than the model's, as transformers has found."""
    family = find_family(config.model_type)
    shapes = {name: (list(have), list(want)) for name, have, want in info["mismatched_keys"]}
    have, want = shapes.get(f"{family.head}.weight", ([0], [0]))
    if have[0] != want[0]:
        raise UserError(
            f"the CTC head in the weights of {upstream} has {have[0]} rows, its config.json says {want[0]} (vocab_size)"
        )
    wrong = [f"{name} is {have}, not {want}" for name, (have, want) in sorted(shapes.items())]
    wrong += [f"{name} is missing" for name in sorted(info["missing_keys"]) if not name.endswith(family.may_be_missing)]
    if wrong:
        raise UserError(f"the weights of {upstream} do not fit its config.json: {len(wrong)} wrong, first: {wrong[0]}")


def apply_overrides(config: PretrainedConfig, overrides: dict | None) -> None:
    """Change fields of ``config``; raises UserError for a field that it does not have."""
    fields = find_family(config.model_type).encoder_config(config)
    for key, value in (overrides or {}).items():
        if not isinstance(key, str) or not hasattr(fields, key):
            raise UserError(f"a {config.model_type} configuration has no field {key!r}")
        try:
            setattr(fields, key, value)
        except Exception as error:  # transformers checks the value, and raises types of its own
            reason = str(error).splitlines()[-1]
            raise UserError(f"upstream_conf.{key} cannot be {value!r}: {one_line(reason)}") from None


def config_as_dict(config: PretrainedConfig) -> dict:
    """All fields of ``config`` as plain YAML types."""
    return json.loads(config.to_json_string(use_diff=False))


def config_from_dict(config: Mapping) -> PretrainedConfig:
    """A configuration of transformers, without what says how a model runs instead of what it is.

    Raises:
        UserError: it has so many labels that naming them would take long.
    """
    return AutoConfig.for_model(**_what_it_is(config))


def _what_it_is(config: Mapping) -> dict:
    labels = config.get("num_labels")
    if isinstance(labels, (int, float)) and labels > MOST_LABELS:
        raise UserError(f"num_labels {shown(labels)}")
    return {
        name: _what_it_is(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in HOW_IT_RUNS
    }


def model_from_dict(config: Mapping) -> PreTrainedModel:
    """A model without a head of the given configuration. Its weights are still to be loaded; nothing is downloaded.

    Raises:
        UserError: as ``config_from_dict``.
    """
    made = config_from_dict(config)
    return _model_class(AutoModel, made)._from_config(made)


def fill_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers of a model on the meta device that are not saved, such as an embedding of positions.

    transformers computes them when it initialises the module that holds them. Such a module has no weights.
    """
    for module in model.modules():
        unsaved = [name for name in module._non_persistent_buffers_set if module._buffers[name].is_meta]
        for name in unsaved:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if unsaved:
            model._init_weights(module)


def save_ctc_model(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    head: nn.Linear,
    tokens: list[str],
    processing: WaveformProcessing,
) -> None:
    """Write a Hugging Face folder that ``load_upstream`` and ``AutoModelForCTC.from_pretrained`` read.

    Args:
        folder: created if it does not exist.
        model: the Transformer with folded gates.
        head: weight (vocabulary, hidden).
        tokens: ESPnet's names of the head's outputs, "<blank>" first.
        processing: written to preprocessor_config.json.
    """
    config = AutoConfig.for_model(**model.config.to_dict())
    family = find_family(config.model_type)
    config.vocab_size = len(tokens)
    config.update(dict.fromkeys(family.blank_fields, 0))
    ends = {"bos_token_id": "<s>", "eos_token_id": "<sos/eos>"}
    optional = {field.name for field in dataclasses.fields(config) if type(None) in typing.get_args(field.type)}
    for key, token in ends.items():
        if token in tokens or key in optional:  # UniSpeech-SAT's must be numbers; CTC uses neither
            config.update({key: tokens.index(token) if token in tokens else None})
    extractor = save_with_head(folder, model, AutoModelForCTC, {family.head: head}, config.to_dict(), processing)
    processor = getattr(transformers, family.processor)(extractor, family.tokenizer(Path(folder), tokens))
    processor.save_pretrained(folder)
    _write_extractor(folder, {**extractor.to_dict(), "processor_class": type(processor).__name__})


def save_with_head(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    auto,
    heads: dict[str, nn.Module],
    fields: dict,
    processing: WaveformProcessing,
) -> SequenceFeatureExtractor:
    """Write configuration, weights and waveform processing of a model with a head.

    Args:
        folder: created if it does not exist.
        model: the Transformer.
        auto: transformers' class for models with such a head.
        heads: ``{attribute of such a model: its layer}``.
        fields: of the configuration, besides the model's own.
        processing: written to preprocessor_config.json.

    Returns: the extractor of that file.
    """
    config = AutoConfig.for_model(**{**model.config.to_dict(), **fields})
    config.dtype = "float32"
    whole = auto.from_config(config)
    setattr(whole, whole.base_model_prefix, model)
    for name, layer in heads.items():
        setattr(whole, name, layer)
    whole.save_pretrained(folder)
    for path in Path(folder).iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    extractor = getattr(transformers, find_family(config.model_type).extractor)(**dataclasses.asdict(processing))
    _write_extractor(folder, extractor.to_dict())
    return extractor


def _write_extractor(folder: str | os.PathLike, settings: dict) -> None:
    # transformers 5 writes the settings of a processor's extractor to processor_config.json. Earlier versions and other
    # libraries read this file.
    write_json(Path(folder) / FEATURE_EXTRACTOR_NAME, settings)
