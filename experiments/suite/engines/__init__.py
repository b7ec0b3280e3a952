"""Engines: where the runs of a plan are executed."""
