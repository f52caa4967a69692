"""The compressed model in the user's hands: formats to ship it in, ``load`` to get it back, long audio to feed it."""

import espnet_pinch.asr  # noqa: F401  (before anything of ESPnet is imported)
