"""Ids of StarCraft II's units and abilities."""

UNITS = {
    "colossus": 4,
    "baneling": 9,
    "marine": 48,
    "marauder": 51,
    "medivac": 54,
    "zealot": 73,
    "stalker": 74,
    "spine_crawler": 98,
    "zergling": 105,
    "hydralisk": 107,
}

SMART, STOP, MOVE, ATTACK, HEAL = 1, 4, 16, 23, 386
