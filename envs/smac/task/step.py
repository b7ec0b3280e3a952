"""One environment step of E battles: actions, game loops, reward, termination, observations."""

from typing import NamedTuple

import numpy as np

from marl.envs.smac.engine.battle import Battle, Scratch, begin_episode, run_game_loops
from marl.envs.smac.engine.compiling import compiled, entry
from marl.envs.smac.engine.fields import (
    HEALTH,
    IGNORED,
    LAST,
    NO_ACTION,
    RUNNING,
    RUNNING_ON,
    STEPS,
    Rules,
    World,
    env_world,
)
from marl.envs.smac.engine.scenario import update_visibility
from marl.envs.smac.engine.thread_pool import ENDED, publish, take_work
from marl.envs.smac.task.actions import apply_action, offer_actions, offer_targets
from marl.envs.smac.task.mappo_layout import write_mappo_obs, write_mappo_state
from marl.envs.smac.task.observation import update_health_shares, write_obs, write_state
from marl.envs.smac.task.reward import battle_outcome, step_reward


class View(NamedTuple):
    """Output buffers: `obs` (E, N, D), `state` (E, S), `mask` (E, N, A), `alive` (E, N), `reward` (E, N), `outcome`
    (E,) int64, `terminated` and `truncated` (E,) bool."""

    obs: np.ndarray
    state: np.ndarray
    mask: np.ndarray
    alive: np.ndarray
    reward: np.ndarray
    outcome: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


@compiled
def observe_battle(rules, world, battle, view, env):
    """Update observations, state and mask of one environment."""
    unit_float, unit_int, counters = battle.unit_float[env], battle.unit_int[env], battle.counters[env]
    mask, obs = view.mask[env], view.obs[env]
    update_health_shares(world.stats, unit_float)
    for agent in range(rules.agents):
        view.alive[env, agent] = unit_float[HEALTH, agent] > 0.0
    if rules.visibility_prob < 1.0:
        update_visibility(rules, world.stats, unit_float, unit_int, counters)
    offer_actions(rules, world.stats, world.walkable, unit_float, mask)
    if rules.mappo:
        write_mappo_obs(rules, world.stats, world.walkable, unit_float, unit_int, counters, mask, obs)
    else:
        write_obs(rules, world.stats, world.walkable, unit_float, unit_int, counters, mask, obs)
    if rules.mappo and not rules.concat_obs:
        write_mappo_state(rules, world.stats, unit_float, unit_int, counters, mask, view.state[env])
    else:
        write_state(rules, world.stats, unit_float, unit_int, counters, obs, view.state[env])
    if not rules.masked:
        offer_targets(rules, world.stats, unit_float, mask)


@entry
def find_unavailable(mask, alive, counters, action, ignore):
    """Return (environment, agent) of the first unavailable action of a living agent, else (-1, -1).

    Return (environment, -1) for an environment without a running episode.
    """
    for env in range(action.shape[0]):
        if counters[env, RUNNING] == 0:
            return env, -1
        for agent in range(action.shape[1]):
            if alive[env, agent]:
                choice = action[env, agent]
                outside = choice < 0 or choice >= mask.shape[2]
                if outside or (not ignore and not mask[env, agent, choice]):
                    return env, agent
    return -1, -1


@compiled
def record_actions(rules, battle, view, action, env):
    """Store the actions (N,) of one environment as the last ones. Unavailable ones become no-ops and are counted."""
    unit_int, counters = battle.unit_int[env], battle.counters[env]
    for agent in range(rules.agents):
        unit_int[LAST, agent] = NO_ACTION
        if view.alive[env, agent]:
            choice = action[agent]
            if view.mask[env, agent, choice]:
                unit_int[LAST, agent] = choice
            else:
                counters[IGNORED] += 1


@compiled
def finish_step(rules, world, battle, view, env):
    """Compute reward, termination and observations after the game loops of a step."""
    unit_float, counters = battle.unit_float[env], battle.counters[env]
    counters[STEPS] += 1
    outcome = battle_outcome(rules, world.stats, unit_float)
    view.outcome[env] = outcome
    view.reward[env] = step_reward(rules, world.stats, unit_float, outcome)
    view.terminated[env] = outcome != RUNNING_ON
    view.truncated[env] = outcome == RUNNING_ON and counters[STEPS] >= rules.limit
    if view.terminated[env] or view.truncated[env]:
        counters[RUNNING] = 0
    observe_battle(rules, world, battle, view, env)


@entry
def advance(rules, world, battle, view, action, scratch, queue, is_worker):
    """Play one step in the environments taken from the queue. Return the number of ended episodes.

    The first four arguments and `scratch` are plain tuples of the fields of Rules, World, Battle, View and Scratch,
    because named ones take microseconds to pass. The world has the leading axes of `env_world`. `action` (E, N) holds
    actions within range; those of dead agents are not read. Threads that share a `queue` share the work, see
    `thread_pool`; a worker stays for the steps that follow.
    """
    rules, world, battle, view, scratch = Rules(*rules), World(*world), Battle(*battle), View(*view), Scratch(*scratch)
    if not is_worker:
        publish(queue, action.shape[0])
    first, last = take_work(queue, is_worker, 0, 0)
    while first < last:
        ended = 0
        for env in range(first, last):
            unit_float, unit_int, counters = battle.unit_float[env], battle.unit_int[env], battle.counters[env]
            here = env_world(world, env)
            record_actions(rules, battle, view, action[env], env)
            for agent in range(rules.agents):
                if unit_int[LAST, agent] != NO_ACTION:
                    apply_action(rules, here, unit_float, unit_int, agent, unit_int[LAST, agent])
            run_game_loops(here, scratch, unit_float, unit_int, counters)
            finish_step(rules, here, battle, view, env)
            ended += 1 - counters[RUNNING]
        first, last = take_work(queue, is_worker, last - first, ended)
    return queue[ENDED]


@entry
def restart(rules, world, battle, view, chosen):
    """Begin an episode in each of the chosen environments, from their random streams; see `advance`."""
    rules, world, battle, view = Rules(*rules), World(*world), Battle(*battle), View(*view)
    for env in chosen:
        here = env_world(world, env)
        begin_episode(here, battle.unit_float[env], battle.unit_int[env], battle.counters[env])
        observe_battle(rules, here, battle, view, env)
