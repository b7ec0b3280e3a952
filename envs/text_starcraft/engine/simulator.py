"""One decision of E games: actions, steps of the simulator, rewards, ends, observations."""

from marl.envs.text_starcraft.engine.combat import fight
from marl.envs.text_starcraft.engine.commands import apply_action, find_reason, find_reasons, order_attack
from marl.envs.text_starcraft.engine.compiling import compiled, entry
from marl.envs.text_starcraft.engine.economy import count_types, distribute_workers, mine
from marl.envs.text_starcraft.engine.movement import move_groups
from marl.envs.text_starcraft.engine.observation import copy, look, show, write_changes, write_frame
from marl.envs.text_starcraft.engine.production import advance_pending, advance_structures, group_supply
from marl.envs.text_starcraft.engine.scenarios import FULL_GAME, begin_game, score, technologies
from marl.envs.text_starcraft.engine.state import (
    BANK_STEPS,
    BANK_SUM,
    BEST_TECH,
    BLOCKED_SECONDS,
    CHOICE,
    FAILURES,
    FRAME,
    LAST_SCOUT,
    LAST_SECONDS,
    LEVEL,
    LOOP,
    MAX_STEPS,
    MAX_STRUCTURES,
    OUTCOME,
    PREFIX_BANK_SUM,
    PREFIX_OVER,
    PREFIX_SECONDS,
    PROTOSS,
    RUNNING,
    SCENARIO,
    SCORE,
    STEP_LOOPS,
    STEPS,
    TYPE,
    USED_STEPS,
    USED_SUM,
    ZERG,
)
from marl.envs.text_starcraft.engine.zerg_army import TICK, decide, defend_home, lead_waves

WON, LOST_GAME = 1, -1
FULL_SUPPLY = 194
"""Used supply at which the metrics of supply blocks and of the bank end."""
NUM_TECHNOLOGIES = 42
AUTO_ATTACK_LOOP, AUTO_ATTACK_SUPPLY, AUTO_ATTACK_ARMY = 12 * 1344, 100, 20
"""From 12:00 with 100 supply in use the army at home attacks by itself (army supply in halves)."""


@compiled
def harvest_percent(level, loop):
    """Return the opponent's harvest in percent. Levels 9 and 10 gain over time (script seconds of 16 loops)."""
    seconds = loop / 16.0
    if level == 9:
        return 100 + int(50.0 * min(1.0, max(0.0, (seconds - 120.0) / 1080.0)))
    if level == 10:
        return 120 + int(80.0 * min(1.0, seconds / 1200.0))
    return 100


@compiled
def play_step(game, view):
    """Play one step of the simulator."""
    core = game.core
    for side in range(2):
        mine(game, side, 100 if side == PROTOSS else harvest_percent(core[LEVEL], core[LOOP]))
        advance_structures(game, side)
        advance_pending(game, side)
    core[LOOP] += STEP_LOOPS
    core[STEPS] += 1
    if core[LOOP] % TICK == 0:
        distribute_workers(game, PROTOSS, True)
        distribute_workers(game, ZERG, True)
        if core[SCENARIO] == FULL_GAME:
            count_types(game, view, ZERG)
            decide(game, view)
        else:
            lead_waves(game)
        defend_home(game, PROTOSS)
        defend_home(game, ZERG)
        large = view.shown[5] >= AUTO_ATTACK_SUPPLY and group_supply(game, PROTOSS, 0) >= AUTO_ATTACK_ARMY
        if large and core[LOOP] >= AUTO_ATTACK_LOOP:
            order_attack(game)
    move_groups(game, PROTOSS)
    move_groups(game, ZERG)
    fight(game, view)
    count_types(game, view, PROTOSS)
    show(game, view)
    measure(game, view)


@compiled
def measure(game, view):
    """Add a step to the metrics."""
    totals, shown = game.totals, view.shown
    seconds = float(game.core[LOOP] * 10 // 224)
    bank = float(shown[1] + shown[2])
    totals[BANK_SUM] += bank
    totals[BANK_STEPS] += 1.0
    if totals[PREFIX_OVER] == 0.0:
        if shown[3] == 0:
            totals[BLOCKED_SECONDS] += seconds - totals[LAST_SECONDS]
        totals[PREFIX_BANK_SUM] += bank
        totals[PREFIX_SECONDS] = seconds
        if shown[5] >= FULL_SUPPLY:
            totals[PREFIX_OVER] = 1.0
    totals[LAST_SECONDS] = seconds
    if shown[4] > 0:
        totals[USED_SUM] += shown[5] / shown[4]
        totals[USED_STEPS] += 1.0
    totals[BEST_TECH] = max(totals[BEST_TECH], technologies(shown) / NUM_TECHNOLOGIES)


@compiled
def has_structures(game, side):
    """Return whether a side has a structure."""
    for slot in range(MAX_STRUCTURES):  # noqa: SIM110 - numba compiles no generators
        if game.structures[side, TYPE, slot] >= 0:
            return True
    return False


@compiled
def act(game, view, action, agent, place):
    """Carry out an agent's action, or record why it failed."""
    if action < 0:
        return
    reason = find_reason(game, view.summary[PROTOSS], action)
    game.results[place, 0], game.results[place, 1], game.results[place, 2] = action, reason, agent
    if reason == 0:
        apply_action(game, action)
        count_types(game, view, PROTOSS)
    else:
        game.core[FAILURES] += 1


@compiled
def keep_shown(game, view):
    """Store the shown numbers as those of the decision before."""
    for index in range(len(view.shown)):
        game.previous[index] = view.shown[index]


@compiled
def decide_game(game, view, kept, lengths, actions, frames, choices, win_reward):
    """Play one decision of a game: its actions (L, N), spread over the steps that it lasts. Return whether it ended.

    A window of `frames` steps has `choices` decisions. `kept` (W, bytes) receives W of its frames, with their
    `lengths` (W,), 0 for those that are not played yet.
    """
    core = game.core
    choice = core[CHOICE]
    if choice == 0:
        keep_shown(game, view)
        game.results[:] = -1
        core[FRAME] = 0
        lengths[:] = 0
    begun = core[FRAME]
    until = frames if choice == choices - 1 else offset(choice + 1, choices, frames)
    count, agents = actions.shape
    reward, done = 0.0, 0
    terminated = truncated = False
    while core[FRAME] < until:
        while done < count and core[FRAME] - begun >= offset(done, count, frames):
            for agent in range(agents):
                act(game, view, actions[done, agent], agent, (choice + done) * agents + agent)
            done += 1
        play_step(game, view)
        core[FRAME] += 1
        keep_frames(game, view, kept, lengths, frames)
        reached = score(game, view)
        reward += reached - game.totals[SCORE]
        game.totals[SCORE] = reached
        if not has_structures(game, ZERG):
            terminated, core[OUTCOME] = True, WON
            reward += win_reward
        elif not has_structures(game, PROTOSS):
            terminated, core[OUTCOME] = True, LOST_GAME
        truncated = not terminated and core[STEPS] >= core[MAX_STEPS]
        if terminated or truncated:
            core[RUNNING] = 0
            break
    core[CHOICE] = (choice + 1) % choices
    view.reward, view.duration = reward, core[FRAME] - begun
    view.terminated, view.truncated = terminated, truncated
    return terminated or truncated


@compiled
def keep_frames(game, view, kept, lengths, frames):
    """Write the step's text to the row of `kept` (W, bytes) that it belongs to."""
    wanted = len(lengths)
    for row in range(wanted):
        if kept_frame(row, wanted, frames) == game.core[FRAME]:
            look(game, view)
            lengths[row] = write_frame(game, view)
            copy(view.text, 0, lengths[row], kept[row], 0)


@compiled
def kept_frame(row, wanted, frames):
    """Return the step of a window, from 1 on, after which frame `row` is kept. The last row is the last step."""
    return frames - (wanted - 1 - row) * frames // wanted


@compiled
def offset(place, count, frames):
    """Return the frame of an action: evenly from the first to the last, rounded down."""
    return place * (frames - 1) // (count - 1) if count > 1 else 0


@compiled
def observe(game, view, texts):
    """Update everything that follows from the state. The text is that of the window's start."""
    look(game, view)
    find_reasons(game, view)
    if texts and (game.core[CHOICE] == 0 or not game.core[RUNNING]):
        view.length = write_frame(game, view)
        if texts > 1:
            view.length = write_changes(game, view, view.length)


@entry
def advance(games, views, kept, lengths, actions, frames, choices, win_reward, texts):
    """Play a decision of every game. Return the number of ended episodes.

    `actions` (E, L, N) are ids, -1 for none. `frames`, `choices`: steps and decisions of a window. `kept` (E, W, bytes)
    and `lengths` (E, W): texts of W frames of the window.
    `texts`: 0 none, 1 frames, 2 frames and changes.
    """
    ended = 0
    for env in range(actions.shape[0]):
        game, view = games[env], views[env]
        ended += decide_game(game, view, kept[env], lengths[env], actions[env], frames, choices, win_reward)
        observe(game, view, texts)
    return ended


@entry
def restart(games, views, chosen, texts):
    """Begin an episode in each of the chosen games; see `advance`."""
    for env in chosen:
        game, view = games[env], views[env]
        core = game.core
        core[LOOP] = core[STEPS] = core[OUTCOME] = core[FAILURES] = core[FRAME] = core[CHOICE] = 0
        core[RUNNING] = 1
        core[LAST_SCOUT] = -(1 << 20)
        begin_game(game)
        refresh_game(game, view)
        game.totals[SCORE] = score(game, view)
        keep_shown(game, view)
        observe(game, view, texts)


@compiled
def refresh_game(game, view):
    """Fill the part of the view that the next step reads."""
    count_types(game, view, PROTOSS)
    count_types(game, view, ZERG)
    show(game, view)


@entry
def refresh(games, views, chosen, texts):
    """Update the views of the chosen games after their state was set."""
    for env in chosen:
        refresh_game(games[env], views[env])
        observe(games[env], views[env], texts)
