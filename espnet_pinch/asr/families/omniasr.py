"""Omnilingual ASR's CTC models: wav2vec2 with layer norms before the blocks, under names and fields of its own.

Their configuration holds that of the Transformer, ``audio_config``; the model holds the Transformer, ``audio_tower``.
The blank is a field of its own, and not the token for padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet_pinch.asr.families.wav2vec2 import Wav2Vec2
from espnet_pinch.asr.family import register
from espnet_pinch.data.tokens import SPACE, surface
from espnet_pinch.errors import UserError

TOWER = "omniasr_audio"  # model type of the Transformer


@register
class OmniASR(Wav2Vec2):
    """Models built like transformers' ``OmniASRCTCModel``."""

    model_types = ("omniasr_ctc",)
    layers = (
        r"(^|\.)audio_tower\.layers\.\d+\."
        r"(attention\.(q_proj|k_proj|v_proj|out_proj)|feed_forward\.(intermediate_dense|output_dense))$"
    )
    convolutions = "audio_tower.subsampling.conv_layers"
    projection = "audio_tower.subsampling"
    head = "ctc_head"
    may_be_missing = ()
    channel = True
    variance_floor = 1e-5
    always_masks = True  # its processor has the setting, and makes the mask in any case
    blank_fields = ("blank_token_id", "pad_token_id")
    vocabulary_file = "tokenizer.json"
    extractor = "OmniASRFeatureExtractor"
    processor = "OmniASRCTCProcessor"
    has_pipeline = False  # it gives an attention mask to models for CTC, and these take a padding mask alone

    def encoder_config(self, config):
        return config.audio_config

    def objection(self, config) -> str | None:
        if config.audio_config.model_type != TOWER:
            return f"an audio_config of type {config.audio_config.model_type}, not {TOWER}"
        if config.audio_config.num_conv_pos_embeddings % 2:
            return f"an odd num_conv_pos_embeddings, {config.audio_config.num_conv_pos_embeddings}"
        return super().objection(config.audio_config)

    def frames_of(self, config, samples):
        return super().frames_of(config.audio_config, samples)

    def stride(self, config) -> int:
        return super().stride(config.audio_config)

    def output_size(self, config) -> int:
        return super().output_size(config.audio_config)

    def dropout(self, config) -> float:
        return 0.0  # the model has dropped out already

    def masks_padding(self, config) -> bool:
        return True

    def freeze_feature_encoder(self, model: nn.Module) -> None:
        model.get_submodule(self.convolutions).requires_grad_(False)

    def hidden_states(self, model: nn.Module, speech: Tensor, mask: Tensor | None, frames: Tensor) -> Tensor:
        """There is no SpecAugment in these models."""
        return model(speech[:, None], padding_mask=mask).last_hidden_state

    def leaves_out_parameters(self, config) -> bool:
        return bool(config.audio_config.layerdrop)

    @contextmanager
    def exporting(self, model: nn.Module) -> Iterator[None]:
        # As espnet_pinch.export.frame_mask: transformers divides numbers of samples as floats, under another name.
        def mask_of_frames(mask: Tensor, target_length: int) -> Tensor:
            return torch.arange(target_length, device=mask.device) < self.frames_of(model.config, mask.sum(-1))[:, None]

        tower = model.get_submodule("audio_tower")
        tower._get_output_attention_mask = mask_of_frames
        try:
            yield
        finally:
            del tower._get_output_attention_mask

    def read_vocabulary(self, folder: Path, config):
        from transformers import PreTrainedTokenizerFast

        from espnet_pinch.asr.vocabulary import Vocabulary, first_of, read_tokenizer, within_head

        path = folder / self.vocabulary_file
        tokenizer = read_tokenizer(PreTrainedTokenizerFast, folder)
        if not 0 <= config.blank_token_id < config.vocab_size:
            raise UserError(
                f"{folder}/config.json has the blank (blank_token_id) in row {config.blank_token_id}, but the head has "
                f"{config.vocab_size} rows"
            )
        vocabulary = tokenizer.get_vocab()
        for row, name in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
            if name is not None and vocabulary.get(name, row) != row:
                raise UserError(f"{path} is damaged: {name!r} is there twice, in row {row} and {vocabulary[name]}")
        names = within_head(vocabulary, config, path)
        return Vocabulary(
            names,
            blank=config.blank_token_id,
            delimiter=first_of((" ", "\u2581"), names.values()),
            unknown=first_of((tokenizer.unk_token, "<unk>"), names.values()),
            end=tokenizer.eos_token,
        )

    def tokenizer(self, folder: Path, tokens: Sequence[str]):
        """Like that of the published models. Where tokens are subwords, it cuts a word into the fewest."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from transformers import ParakeetTokenizer

        from espnet_pinch.asr.vocabulary import stock_names

        found = stock_names(tokens, space=" ")
        whole = Tokenizer(models.Unigram([(name, -1.0) for name in found.names], unk_id=tokens.index("<unk>")))
        whole.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
        whole.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
        whole.decoder = decoders.Fuse()
        special = {role: name for role, name in found.special.items() if role != "word_delimiter_token" and name}
        silent = [name for token, name in zip(tokens, found.names) if token != SPACE and not surface(token)]
        special["extra_special_tokens"] = [name for name in silent if name not in special.values()]
        return ParakeetTokenizer(tokenizer_object=whole, clean_up_tokenization_spaces=False, **special)
