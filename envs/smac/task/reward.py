"""Outcome and reward of a step."""

from marl.envs.smac.engine.compiling import compiled
from marl.envs.smac.engine.fields import COUNTED, DRAWN, HEALER, HEALTH, LOST, RUNNING_ON, SCALE, SHIELD, WON


@compiled
def battle_outcome(rules, stats, unit_float):
    """Return WON, LOST, DRAWN (both sides are dead) or RUNNING_ON.

    On maps with healers, allies that are all healers have lost. So has an enemy of one single healer, and in SMACv2 of
    any number of healers.
    """
    allies, fighters, enemies, healers = 0, 0, 0, 0
    for unit in range(rules.agents + rules.enemies):
        if unit_float[HEALTH, unit] > 0.0:
            heals = rules.healers and stats[HEALER, unit] > 0.0
            if unit < rules.agents:
                allies += 1
                fighters += 0 if heals else 1
            else:
                enemies += 1
                healers += 1 if heals else 0
    if (allies == 0 and enemies > 0) or (rules.healers and fighters == 0):
        return LOST
    harmless = enemies > 0 and enemies == healers and (enemies == 1 or rules.random_teams)
    if (allies > 0 and enemies == 0) or harmless:
        return WON
    return DRAWN if allies == 0 else RUNNING_ON


@compiled
def step_reward(rules, stats, unit_float, outcome):
    """Return the reward of a step that ended with `outcome`, and update COUNTED.

    With `only_positive`, SMAC takes the absolute value, which also rewards regeneration of enemies. SMACv2 clips at 0.
    """
    damage, kills, lost = 0.0, 0.0, 0.0
    for unit in range(rules.agents + rules.enemies):
        before = unit_float[COUNTED, unit]
        after = unit_float[HEALTH, unit] + unit_float[SHIELD, unit] if unit_float[HEALTH, unit] > 0.0 else 0.0
        unit_float[COUNTED, unit] = after
        died = before > 0.0 and after == 0.0
        if unit >= rules.agents:
            damage += before - after
            kills += rules.death_value if died else 0.0
        else:
            lost += before - after + (rules.death_value if died else 0.0)
    if rules.sparse:
        reward = 1.0 if outcome == WON else -1.0 if outcome == LOST else 0.0
    else:
        reward = damage + kills - (0.0 if rules.only_positive else rules.negative_scale * lost)
        if rules.only_positive:
            reward = max(0.0, reward) if rules.random_teams else abs(reward)
        reward += rules.win if outcome == WON else rules.defeat if outcome == LOST else 0.0
    return reward * stats[SCALE, 0]
