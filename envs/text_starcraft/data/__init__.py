"""Facts of the game and of its interface as tables."""
