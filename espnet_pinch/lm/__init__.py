"""n-gram language models of words: reading ARPA files, and counting small models."""
