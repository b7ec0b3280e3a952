"""The embedded simulator, compiled by numba."""
