#!/usr/bin/env bash
# Sourced. A LibriSpeech that is there already (the folder that holds LibriSpeech/train-clean-100 and so on), as
# --librispeech; empty: stage 0 downloads it.
export LIBRISPEECH=""
