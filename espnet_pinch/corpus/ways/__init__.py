"""The ways in, a file each; ``espnet_pinch.corpus.way`` has their base class."""
