"""A file for each format that transcripts are written in. ``espnet_pinch.transcript.format`` finds them."""
