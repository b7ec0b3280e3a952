"""Video of a battle: frames a few game loops apart, also within a step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from marl.envs.smac.engine.fields import DRAWN, HEALTH, LAST, LOST, RUNNING, STEPS, WON
from marl.envs.smac.maps import LOOPS
from marl.envs.smac.render.image import Frame, Painter

if TYPE_CHECKING:
    from marl.envs.smac.battles import Battles

LOOPS_PER_FRAME = 2
"""Game loops between frames: at 30 frames a second, 3.75 times the game's normal speed."""

END_FRAMES = 20
"""Number of repetitions of a battle's last frame."""

RESULTS = {WON: "won", LOST: "lost", DRAWN: "drawn"}


class BattleVideo:
    """Frames of the first battle of `battles`. Call `draw` after every reset and every step.

    Frames within a step come from a copy of the battle that plays the step again, so the battle itself is not slowed
    down.
    """

    def __init__(self, battles: Battles) -> None:
        self._battles, self._replica = battles, copy.deepcopy(battles)
        self._painter = Painter(battles.map_at(0), battles.world_at(0).stats)
        self._before = battles.get_state(0)
        self._alive = np.zeros(battles.world.units, bool)
        self._dead_for = np.full(battles.world.units, np.inf)
        self._total: float | None = None

    def draw(self, attention: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the frames since the last call, (height, width, 3) uint8: one after a reset, else several for the
        step.

        `attention` (N, N) is the weight of each column's agent in the decision of each row's agent, None to draw none.
        If neither a reset nor a single step came between, only the present is drawn.
        """
        battles, before = self._battles, self._before["counters"]
        counters = battles.battle.counters[0]
        frames = []
        if before[RUNNING] and counters[STEPS] == before[STEPS] + 1:
            frames = [self._paint(self._replay(loops), LOOPS_PER_FRAME, attention) for loops in self._pauses()]
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
        frames.append(self._paint(battles, (battles.world.loops - 1) % LOOPS_PER_FRAME + 1, attention, result))
        self._before = battles.get_state(0)
        return frames + [frames[-1]] * (END_FRAMES if result else 0)

    def _pauses(self) -> range:
        """Return the loops of a step after which a frame is drawn, without the last one."""
        return range(LOOPS_PER_FRAME, self._battles.world.loops, LOOPS_PER_FRAME)

    def _replay(self, loops: int) -> Battles:
        """Play the last step again up to one of its loops."""
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
