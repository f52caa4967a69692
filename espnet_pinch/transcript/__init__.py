"""Transcripts of recordings, with the times of their words, and the formats to write them in."""
