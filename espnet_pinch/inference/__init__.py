"""A folded model made faster on a CPU: sparse products, compiled by numba."""
