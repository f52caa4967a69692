"""Data preparation before training: corpora, Kaldi data directories, token lists, upstream models."""
