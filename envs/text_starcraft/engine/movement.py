"""Movement of groups along roads, joining, and contact."""

from marl.envs.text_starcraft.data.names import MAX_TYPES, ZERG_UPGRADES
from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.world_map import DISTANCE, NEXT_NODE, POSITION
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.production import group_supply, move_all, rally_site, stand
from marl.envs.text_starcraft.engine.state import (
    ATTACK,
    CONTACT,
    DONE,
    FROM,
    GOAL,
    HOME,
    HP,
    MAX_GROUPS,
    MAX_STRUCTURES,
    MINERS,
    MODE,
    OWNER,
    PROTOSS,
    RETREAT,
    SCOUT,
    SCOUT_BACK,
    SHIELD,
    SITE,
    STEP_LOOPS,
    TO,
    TYPE,
    ZERG,
    X,
    Y,
)

CONTACT_RANGE = 10.0
"""Distance in cells at which groups fight each other or a structure's site."""
SPEED = U.speed
OVERLORD, ZERGLING, ROACH, ZEALOT, VOID_RAY = 1, 4, 6, 1, 7
CHARGE_UP, VOID_SPEED = 9, 23
LING_SPEED, ADRENAL, ROACH_SPEED = (
    ZERG_UPGRADES.index(n) for n in ("zerglingmovementspeed", "zerglingattackspeed", "GlialReconstitution")
)


@compiled
def send_group(game, side, group, start, goal, mode):
    """Send a group from a node to a goal."""
    stand(game, side, group, start)
    game.groups[side, group, GOAL], game.groups[side, group, MODE] = goal, mode


@compiled
def speed_of(game, side, kind):
    """Return the speed of a unit with its upgrades, in cells a loop."""
    speed = SPEED[side, kind]
    if side == ZERG:
        if kind == ZERGLING and game.upgrades[ZERG, LING_SPEED] == 1:
            speed *= 1.6
        elif kind == ROACH and game.upgrades[ZERG, ROACH_SPEED] == 1:
            speed *= 1.33
    elif kind == ZEALOT and game.upgrades[PROTOSS, CHARGE_UP] == 1:
        speed *= 1.5
    elif kind == VOID_RAY and game.upgrades[PROTOSS, VOID_SPEED] == 1:
        speed *= 1.2
    return speed


@compiled
def move_groups(game, side):
    """Move all groups by one step. A group has the speed of its slowest unit, and stands while it fights."""
    for group in range(MAX_GROUPS):
        if group_supply(game, side, group) == 0:
            continue
        row = game.groups[side, group]
        goal, holds = int(row[GOAL]), row[CONTACT] > 0.0 and row[MODE] in (HOME, ATTACK)
        if not holds:
            slowest = 1e9
            for kind in range(MAX_TYPES):
                if game.counts[side, group, kind] and not (side == ZERG and kind == OVERLORD):
                    slowest = min(slowest, speed_of(game, side, kind))
            walk(row, goal, slowest * STEP_LOOPS)
        if int(row[FROM]) == goal and row[DONE] == 0.0:
            arrive(game, side, group)


@compiled
def walk(row, goal, length):
    """Move a group so many cells on the shortest way to a node. It turns round on the road if that is shorter."""
    for _ in range(4):
        start, end = int(row[FROM]), int(row[TO])
        if row[DONE] == 0.0:
            if start == goal:
                break
            end = NEXT_NODE[start, goal]
            row[TO] = end
        road = DISTANCE[start, end]
        if row[DONE] > 0.0 and DISTANCE[start, goal] + row[DONE] < DISTANCE[end, goal] + road - row[DONE]:
            row[FROM], row[TO], row[DONE] = end, start, road - row[DONE]
            start, end = end, start
        step = min(length, road - row[DONE])
        row[DONE] += step
        length -= step
        if row[DONE] >= road - 1e-9:
            row[FROM], row[TO], row[DONE] = end, end, 0.0
        if length <= 0.0:
            break
    start, end = int(row[FROM]), int(row[TO])
    share = row[DONE] / DISTANCE[start, end] if row[DONE] > 0.0 else 0.0
    row[X] = POSITION[start, 0] + share * (POSITION[end, 0] - POSITION[start, 0])
    row[Y] = POSITION[start, 1] + share * (POSITION[end, 1] - POSITION[start, 1])


@compiled
def arrive(game, side, group):
    """Join groups at the same place. Scouts turn back, and become workers again at home."""
    row = game.groups[side, group]
    if row[MODE] == SCOUT:
        row[MODE], row[GOAL] = SCOUT_BACK, rally_site(game, side)
    elif row[MODE] == SCOUT_BACK:
        site = rally_site(game, side)
        if game.counts[side, group, 0] and game.bases[site, OWNER] == side:
            game.bases[site, MINERS] += game.counts[side, group, 0]
            game.counts[side, group, 0] = 0
            game.pools[side, group, HP, 0] = game.pools[side, group, SHIELD, 0] = 0.0
        move_all(game, side, group, 0)
    elif row[MODE] == RETREAT and group > 0:
        if group_supply(game, side, 0) == 0:
            stand(game, side, 0, int(row[FROM]))
        move_all(game, side, group, 0)
    elif row[MODE] == ATTACK:
        for other in range(1, group):
            same = game.groups[side, other, MODE] == ATTACK and group_supply(game, side, other) > 0
            if same and game.groups[side, other, FROM] == row[FROM] and game.groups[side, other, DONE] == 0.0:
                move_all(game, side, group, other)
                break


@compiled
def near(game, side, group, other):
    """Return whether two groups of different sides are in contact."""
    mine, theirs = game.groups[side, group], game.groups[1 - side, other]
    dx, dy = mine[X] - theirs[X], mine[Y] - theirs[Y]
    return dx * dx + dy * dy < CONTACT_RANGE * CONTACT_RANGE


@compiled
def near_site(game, side, group, site):
    """Return whether a group is in contact with a site."""
    row = game.groups[side, group]
    dx, dy = row[X] - POSITION[site, 0], row[Y] - POSITION[site, 1]
    return dx * dx + dy * dy < CONTACT_RANGE * CONTACT_RANGE


@compiled
def standing_at(game, side, site):
    """Return the number of structures of a side at a site."""
    total = 0
    for slot in range(MAX_STRUCTURES):
        total += game.structures[side, TYPE, slot] >= 0 and game.structures[side, SITE, slot] == site
    return total
