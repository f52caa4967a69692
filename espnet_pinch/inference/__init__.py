"""Sparse products, compiled by numba, that make a folded model faster on a CPU."""
