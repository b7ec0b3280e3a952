"""StarCraft II over its own protocol: the messages, an installation, a running game, and a server that speaks the same.

Nothing here knows what is played; `marl.envs.smac.sc2.backend` and `marl.envs.smac.sc2.serve` do.
"""
