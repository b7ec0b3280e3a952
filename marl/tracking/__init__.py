"""Trackers: places to which a run writes its numbers, texts and pictures."""
