"""Runtimes that compute models, and what is compiled for them."""
