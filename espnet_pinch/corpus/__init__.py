"""Corpora of any kind: ways in read what a corpus says of itself; all that follows is the same for every way."""
