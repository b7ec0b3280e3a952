"""Win rates of the scripted players over the ten levels: `python -m marl.envs.text_starcraft.win_rates --games 200`."""

import argparse
from typing import Any

from scipy.stats import binomtest

from marl.envs.text_starcraft import LEVELS, batch
from marl.envs.text_starcraft.scripted import STYLES, ScriptedPlayer
from marl.evaluation import paired_seeds, run_episodes

PARALLEL_GAMES = 50


def count_wins(style: str, level: int, games: int, frames: int = 10) -> int:
    """Games that a style wins on the seeds of evaluations."""
    env = batch(f"pvz-{level}", min(PARALLEL_GAMES, games), frames=frames, observation="vector")
    player: Any = ScriptedPlayer(env.spec, style)
    rows = run_episodes(player, env, paired_seeds(games))
    env.close()
    return sum(int(row.info["success"]) for row in rows)


def main() -> None:
    """Print a line for each style and level."""
    parser = argparse.ArgumentParser(description="Win rates of the scripted players of text-starcraft.")
    parser.add_argument("--styles", nargs="+", choices=tuple(STYLES), default=tuple(STYLES))
    parser.add_argument("--levels", nargs="+", type=int, default=range(1, LEVELS + 1))
    parser.add_argument("--games", type=int, default=200)
    options = parser.parse_args()
    for style in options.styles:
        for level in options.levels:
            wins = count_wins(style, level, options.games)
            low, high = binomtest(wins, options.games).proportion_ci(0.95, "wilson")
            rate = f"{wins}/{options.games} = {wins / options.games:.3f}"
            print(f"{style} level {level}: {rate}, 95 % interval {low:.3f} to {high:.3f}", flush=True)


if __name__ == "__main__":
    main()
