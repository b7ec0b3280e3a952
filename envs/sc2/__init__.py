"""StarCraft II's own protocol: messages, installation, running game, and a server of the same protocol.

The package knows no task; `marl.envs.smac.sc2.backend` and `marl.envs.smac.sc2.serve` do.
"""
