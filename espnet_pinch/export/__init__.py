"""Use of a compressed model: export it in several formats, ``load`` it again, transcribe long audio with it."""

import espnet_pinch.asr  # noqa: F401  (before any import of ESPnet)
