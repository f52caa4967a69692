"""Before training: corpora, Kaldi data directories, token lists."""
