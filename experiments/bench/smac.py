"""SMAC part of `marl bench`: battle steps per second of the embedded engine."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Group
from rich.table import Table

from marl.cpu import usable_cores
from marl.types import VectorStep

MAPS = ("3m", "8m", "27m_vs_30m", "MMM2", "bane_vs_bane", "corridor")
COUNTS = (1, 64, 1024)


def random_choice(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random available action of each agent, (E, N)."""
    return (rng.random(mask.shape, dtype=np.float32) * mask).argmax(-1)


class Player:
    """A vector of battles with random actions; only the environment's own time is measured."""

    def __init__(self, task: str, num_envs: int, threads: int) -> None:
        from marl.envs.smac import batch

        self.env: Any = batch(task, num_envs, threads)
        self._rng = np.random.default_rng(0)
        self._mask: Any = self.env.reset(list(range(num_envs))).action_mask

    def rate(self, seconds: float) -> float:
        """Return steps per second of all battles, measured for about `seconds`."""
        done, spent = 0, 0.0
        while spent < seconds:
            action = random_choice(self._mask, self._rng)
            start = time.perf_counter()
            step: VectorStep = self.env.step(action)
            spent += time.perf_counter() - start
            done += self.env.num_envs
            self._mask = step.obs.action_mask
        return done / spent

    @property
    def kibibytes(self) -> float:
        """Memory of one environment in KiB."""
        battles = self.env._battles
        arrays = [array for part in (battles.battle, battles.view) for array in part]
        return sum(array.nbytes for array in arrays) / self.env.num_envs / 1024


def compile_seconds() -> float:
    """Return the seconds from an empty cache to the end of the first step, in a separate process."""
    code = (
        "import os, tempfile, time\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    os.environ['NUMBA_CACHE_DIR'] = folder\n"
        "    import numpy as np\n"
        "    from marl.envs.smac import make\n"
        "    start = time.perf_counter()\n"
        "    env = make('3m')\n"
        "    env.reset(0)\n"
        "    env.step(np.ones(3, int))\n"
        "    print(time.perf_counter() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def uncompiled_rate() -> float:
    """Return steps per second of one 8m battle without compilation, in a separate process."""
    code = "from marl.experiments.bench.smac import Player; print(Player('8m', 1, 1).rate(3.0))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def own_milliseconds(task: str) -> float:
    """Return the milliseconds of a StarCraft II step outside of game and socket: orders, parsing, rules and views.

    The embedded engine answers once in place of the game; then its recorded answers are replayed.
    """
    from marl.envs.sc2.protos import load

    load()
    api: Any = import_module("s2clientprotocol.sc2api_pb2")
    from marl.envs.smac import make
    from marl.envs.smac.sc2.serve import make_install

    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, SC2PATH=str(make_install(Path(folder)))):
        env = make(task, backend="sc2")
        try:
            battles: Any = env._battles
            rng, obs = np.random.default_rng(0), env.reset(0)
            for _ in range(6):
                obs = env.step(random_choice(obs.action_mask, rng)).obs  # pyright: ignore[reportArgumentType]
            game, answers, best = battles._instances[0]._game, [], float("inf")
            ask = game.ask
            game.ask = lambda *requests: [answers.append(each.SerializeToString()) or each for each in ask(*requests)]
            action = random_choice(obs.action_mask, rng)[None]  # pyright: ignore[reportArgumentType]
            before = [array.copy() for array in battles.battle]
            battles._step(0, action)
            game.ask = lambda *_: [api.Response.FromString(each) for each in answers]
            for _ in range(200):
                for array, old in zip(battles.battle, before, strict=True):
                    array[:] = old
                start = time.perf_counter()
                battles._step(0, action)
                best = min(best, time.perf_counter() - start)
            game.ask = ask
        finally:
            env.close()
    return 1000 * best


def smac_part(config: Any) -> Group:
    """Measure battle steps per second with observations, states, masks, rewards and resets.

    The ratios are to one battle on one thread, and of all threads to one.
    """
    cores = usable_cores()
    columns = ["map", "battles", *(f"{n} thread{'s' * (n > 1)}" for n in sorted({1, cores}))]
    columns += ["times one", "gain", "spread", "KiB each"]
    table = Table(*columns, title="SMAC: thousands of steps per second")
    table.columns[0].no_wrap = True
    for task in MAPS:
        base = 0.0
        for count in COUNTS:
            players = [Player(task, count, threads) for threads in sorted({1, cores})]
            rounds = [[player.rate(config.seconds) for player in players] for _ in range(config.rounds)]
            rates = [statistics.median(rate) for rate in zip(*rounds, strict=True)]
            base = base or rates[0]
            spread = max((max(r) - min(r)) / statistics.median(r) for r in zip(*rounds, strict=True))
            gain = f"{rates[-1] / rates[0] - 1:+.0%}" if len(rates) > 1 and count > 1 else ""
            cells = [task, str(count), *(f"{rate / 1000:.4g}" for rate in rates)]
            table.add_row(*cells, f"{rates[0] / base:.2f}", gain, f"{spread:.0%}", f"{players[0].kibibytes:.1f}")
            for player in players:
                player.env.close()
    slow = uncompiled_rate()
    lines = [f"8m without compilation: {slow:.0f} steps/s; compiling, once: {compile_seconds():.0f} s"]
    if find_spec("pysc2") is not None:
        own = ", ".join(f"{task} {own_milliseconds(task):.2f} ms" for task in MAPS[:3])
        lines.append(f"StarCraft II, our own share of a step (best of 200): {own}")
    return Group(table, *lines)
