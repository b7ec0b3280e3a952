"""Suites and sweeps: many runs as one command, which continues where it stopped when it is repeated."""
