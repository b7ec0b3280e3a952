"""StarCraft II over its own protocol: the messages, an installation, a running game, and a server that speaks the same.

Nothing here knows what is played; `envs.smac.real` and `envs.smac.serve` do.
"""
