"""The compressed model in the user's hands: formats to ship it in, ``load`` to get it back, long audio to feed it."""
