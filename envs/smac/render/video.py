"""The film of a battle: what happened within each step, as pictures a few game loops apart."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from marl.envs.smac.engine.fields import DRAWN, HEALTH, LAST, LOST, RUNNING, STEPS, WON
from marl.envs.smac.maps import LOOPS
from marl.envs.smac.render.image import Frame, Painter

if TYPE_CHECKING:
    from marl.envs.smac.env import Battles

PACE = 2
"""Game loops from one picture to the next: at 30 pictures a second, 3.75 times the game's normal speed."""

HOLD = 20
"""How often the last picture of a battle is repeated."""

RESULTS = {WON: "won", LOST: "lost", DRAWN: "drawn"}


class BattleVideo:
    """Draws the first battle of `battles`. Call `draw` after every reset and every step.

    What happens between two steps is played again from where the first one ended, on a copy of the battle: the
    pictures show the game itself, and the battle pays nothing for being watched.
    """

    def __init__(self, battles: Battles) -> None:
        self._battles, self._replica = battles, copy.deepcopy(battles)
        self._painter = Painter(battles.map_at(0), battles.world_at(0).stats)
        self._before = battles.get_state(0)
        self._alive = np.zeros(battles.world.units, bool)
        self._dead_for = np.full(battles.world.units, np.inf)
        self._total: float | None = None

    def draw(self, attention: np.ndarray | None = None) -> list[np.ndarray]:
        """The pictures since the last call, (height, width, 3) uint8: one after a reset, else some for the step.

        `attention` (N, N) is the weight with which each agent's decision in that step looked at the others; None
        draws none. Where neither a reset nor one step came between, only the present is drawn.
        """
        battles, before = self._battles, self._before["counters"]
        counters = battles.battle.counters[0]
        frames = []
        if before[RUNNING] and counters[STEPS] == before[STEPS] + 1:
            frames = [self._paint(self._replay(loops), PACE, attention) for loops in self._pauses()]
            if self._total is not None:
                self._total += float(battles.view.reward[0].mean())
        else:
            if battles.map_at(0).types != self._painter.map.types:
                self._painter = Painter(battles.map_at(0), battles.world_at(0).stats)
            self._total = None if counters[STEPS] else 0.0
            self._alive[:], self._dead_for[:], attention = False, np.inf, None
        result = (
            "" if counters[RUNNING] or not counters[STEPS] else RESULTS.get(int(battles.view.outcome[0]), "time is up")
        )
        frames.append(self._paint(battles, (battles.world.loops - 1) % PACE + 1, attention, result))
        self._before = battles.get_state(0)
        return frames + [frames[-1]] * (HOLD if result else 0)

    def _pauses(self) -> range:
        """The loops of a step after which a picture is drawn, but for the last one."""
        return range(PACE, self._battles.world.loops, PACE)

    def _replay(self, loops: int) -> Battles:
        """The step that has just been taken, up to one of its loops."""
        replica = self._replica
        replica.set_loops(loops)
        replica.set_state(0, self._before)
        replica.refresh()
        replica.advance(self._battles.battle.unit_int[:, LAST, : replica.rules.agents])
        return replica

    def _paint(self, battles: Battles, loops: int, attention: np.ndarray | None, result: str = "") -> np.ndarray:
        unit_float, unit_int = battles.battle.unit_float[0], battles.battle.unit_int[0]
        alive = unit_float[HEALTH] > 0
        self._dead_for = np.where(self._alive & ~alive, 0.0, self._dead_for + loops)
        self._alive = alive
        return self._painter.paint(Frame(unit_float, unit_int, self._dead_for, self._caption(result)), attention)

    def _caption(self, result: str) -> str:
        battles, steps = self._battles, int(self._battles.battle.counters[0, STEPS])
        parts = [battles.spec.name, f"step {steps} of {battles.rules.limit}"]
        parts.append(f"{steps * battles.world.loops / LOOPS:.1f} s")
        if self._total is not None:
            parts.append(f"return {self._total:.2f}")
        return "    ".join([*parts, result] if result else parts)
