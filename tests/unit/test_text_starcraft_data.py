"""Tables of Text StarCraft: facts, the ids of actions, and damaged files."""

import pytest

from marl.envs.text_starcraft.data import tables, zerg_plans
from marl.envs.text_starcraft.data.names import ACTION_ID, ACTIONS, PROTOSS_STRUCTURES, PROTOSS_UNITS, ZERG_UNITS
from marl.envs.text_starcraft.data.rules import (
    ARCHON,
    FIRST_BUILD,
    FIRST_RESEARCH,
    PRICE_GAS,
    PRICE_MINERALS,
    UPGRADE_BUILDING,
    UPGRADE_NEEDS,
)
from marl.envs.text_starcraft.data.world_map import DISTANCE, NEXT_NODE, NUM_NODES
from marl.envs.text_starcraft.parsing import decisions_text, parse_actions, result_line
from marl.errors import ConfigError

IDS = {
    0: "TRAIN PROBE",
    12: "TRAIN MOTHERSHIP",
    17: "TRAIN DISRUPTOR",
    18: "MORPH ARCHON",
    19: "BUILD PYLON",
    28: "BUILD TEMPLARARCHIVE",
    33: "BUILD SHIELDBATTERY",
    34: "RESEARCH WARPGATERESEARCH",
    38: "RESEARCH PROTOSSAIRARMORSLEVEL1",
    41: "RESEARCH ADEPTPIERCINGATTACK",
    44: "RESEARCH PROTOSSGROUNDWEAPONSLEVEL1",
    52: "RESEARCH PROTOSSSHIELDSLEVEL3",
    59: "RESEARCH TEMPESTGROUNDATTACKUPGRADE",
    60: "SCOUTING PROBE",
    63: "SCOUTING PHOENIX",
    64: "MULTI-ATTACK",
    65: "MULTI-RETREAT",
    66: "CHRONOBOOST NEXUS",
    70: "CHRONOBOOST FORGE",
    71: "EMPTY ACTION",
}


def test_actions_have_the_ids_of_the_interface():
    assert len(ACTIONS) == 72
    assert {number: ACTIONS[number] for number in IDS} == IDS


@pytest.mark.parametrize(
    ("action", "minerals", "gas"),
    [
        ("TRAIN PROBE", 50, 0),
        ("TRAIN IMMORTAL", 275, 100),
        ("TRAIN CARRIER", 350, 250),
        ("BUILD NEXUS", 400, 0),
        ("BUILD FLEETBEACON", 300, 200),
        ("RESEARCH CHARGE", 100, 100),
        ("RESEARCH PROTOSSSHIELDSLEVEL3", 250, 250),
        ("MULTI-ATTACK", 0, 0),
    ],
)
def test_prices_of_actions(action, minerals, gas):
    assert (PRICE_MINERALS[ACTION_ID[action]], PRICE_GAS[ACTION_ID[action]]) == (minerals, gas)


def test_names_of_actions_and_types_agree():
    for unit, name in enumerate(PROTOSS_UNITS):
        assert ACTIONS[unit].split()[1] == name.upper()
    for kind, name in enumerate(PROTOSS_STRUCTURES[:15]):
        assert ACTIONS[FIRST_BUILD + kind].split()[1] == name.upper()
    forge = PROTOSS_STRUCTURES.index("Forge")
    assert UPGRADE_BUILDING[ACTION_ID["RESEARCH PROTOSSSHIELDSLEVEL2"] - FIRST_RESEARCH] == forge
    level_2 = ACTION_ID["RESEARCH PROTOSSAIRWEAPONSLEVEL2"] - FIRST_RESEARCH
    assert UPGRADE_NEEDS[level_2].tolist() == [level_2 - 1, PROTOSS_STRUCTURES.index("FleetBeacon")]
    assert PROTOSS_UNITS.index("Archon") == ARCHON


@pytest.mark.parametrize(
    ("attacker", "defender", "dps"),
    [
        ("Zealot", "Zergling", 18.67),
        ("Zealot", "Roach", 16.34),
        ("Stalker", "Roach", 12.72),
        ("Stalker", "Zergling", 9.73),
    ],
)
def test_damage_a_second_by_the_games_formula(attacker, defender, dps):
    units, a, d = tables.UNITS, PROTOSS_UNITS.index(attacker), ZERG_UNITS.index(defender)
    bonus = units.bonus[0, a, 0] if units.bonus_attributes[0, a, 0] & units.attributes[1, d] else 0.0
    rate = (units.damage[0, a, 0] + bonus - units.armor[1, d]) / units.cooldown[0, a, 0]
    assert rate * tables.LOOPS_PER_SECOND == pytest.approx(dps, abs=0.02)


def test_roads_lead_everywhere():
    assert DISTANCE[0, 8] == pytest.approx(150.4, abs=0.1)
    for start in range(NUM_NODES):
        node, length = start, 0.0
        while node != 8:
            following = int(NEXT_NODE[node, 8])
            length += DISTANCE[node, following]
            node = following
        assert length == pytest.approx(DISTANCE[start, 8])


def test_damaged_tables_are_named():
    with pytest.raises(ConfigError, match=r"units.csv, line 2: 1 fields, and the head has 2; .* install"):
        tables.parse_table("units.csv", "name,hp\nProbe")
    with pytest.raises(ConfigError, match=r"units.csv, Probe: hp='many' is not a number of 0 or more"):
        tables.number("units.csv", {"name": "Probe", "hp": "many"}, "hp")
    with pytest.raises(ConfigError, match=r"hp='nan' is not a number"):
        tables.number("units.csv", {"name": "Probe", "hp": "nan"}, "hp")
    with pytest.raises(ConfigError, match=r"2 rows are named 'Probe', expected one"):
        tables.rows_by_name("units.csv", [{"name": "Probe"}] * 2, ["Probe"])
    with pytest.raises(ConfigError, match=r"attributes \['Bright'\] are not known"):
        tables.attribute_bits("units.csv", {"name": "Probe", "attributes": "Light|Bright"})


@pytest.mark.parametrize(
    ("old", "new", "message"), [("cd1.071s", "cd1s7", "weapon 'ground:5x1 r0.1"), (",20,20,0,", ",0,20,0,", "hp is 0")]
)
def test_a_damaged_row_of_units_is_named(monkeypatch, old, new, message):
    rows = tables.read_table("protoss_units.csv")
    text = ",".join(rows[0]) + "\n" + ",".join(rows[0].values())
    damaged = tables.parse_table("units.csv", text.replace(old, new))
    monkeypatch.setattr(tables, "read_table", lambda _: damaged)
    with pytest.raises(ConfigError, match=f"units.csv, Probe: {message}"):
        tables.Types([("units.csv", ["Probe"])])


def test_plans_of_the_opponent_are_checked(monkeypatch):
    rows = [dict(row) for row in tables.read_table("zerg_plans.csv")]
    rows[1]["Roach"] = "7"
    monkeypatch.setattr(zerg_plans, "read_table", lambda _: rows)
    with pytest.raises(ConfigError, match="zergling_baneling: shares add up to 107"):
        zerg_plans._plans()
    monkeypatch.setattr(zerg_plans, "read_table", lambda _: [])
    with pytest.raises(ConfigError, match="no row for level 1, phase open, build rush"):
        zerg_plans._phases()


@pytest.mark.parametrize(
    ("text", "count", "names"),
    [
        ("TRAIN PROBE", 1, ["TRAIN PROBE"]),
        ("  build   pylon ", 1, ["BUILD PYLON"]),
        ("I would <BUILD PYLON> but rather <Train Zealot>.", 1, ["TRAIN ZEALOT"]),
        (
            "Use <A TAG>.\nDecisions:\n0: <BUILD PYLON>\n1: TRAIN ZEALOT\n2. <TRAIN PROBE>",
            5,
            ["BUILD PYLON", "TRAIN ZEALOT"],
        ),
        ("Decisions: 0: <BUILD NEXUS>\nDecisions:\n0: <EMPTY ACTION>", 1, ["EMPTY ACTION"]),
        ("<BUILD PYLON> <TRAIN PROBE> <TRAIN ZEALOT>", 2, ["TRAIN PROBE", "TRAIN ZEALOT"]),
        ("", 1, []),
    ],
)
def test_text_is_parsed_as_actions(text, count, names):
    ids, failures = parse_actions(text, count)
    assert [ACTIONS[number] for number in ids] == names
    assert failures == []


def test_decisions_come_back():
    assert parse_actions(decisions_text([0, 19, 71]), 5) == ([0, 19, 71], [])


def test_a_name_that_is_no_action_fails_with_the_closest_one():
    ids, failures = parse_actions("<TRAIN PROBES>\n<ÜBER\x07 7>", 2)
    assert ids == []
    assert failures[0] == "Action failed: TRAIN PROBES, Reason: no such action; did you mean TRAIN PROBE\n"
    assert failures[1].startswith("Action failed: \\xdcBER? 7, Reason: no such action")
    assert failures[1].isascii()


def test_results_name_their_reason():
    assert result_line(0, 0) == "Action executed: TRAIN PROBE\n"
    assert result_line(ACTION_ID["SCOUTING ZEALOT"], 14) == (
        "Action failed: SCOUTING ZEALOT, Reason: No Zealot available for scouting\n"
    )
    busy = 5 + 64 * PROTOSS_STRUCTURES.index("Nexus")
    assert result_line(0, busy) == "Action failed: TRAIN PROBE, Reason: All Nexus are busy\n"
