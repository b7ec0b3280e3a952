"""Names of the interface: actions, observation keys, levels, and the types of both races by index."""

_OWN_NAMES = tuple(
    f"{verb} {noun}"
    for verb, nouns in (
        (
            "TRAIN",
            "PROBE ZEALOT ADEPT STALKER SENTRY HIGHTEMPLAR DARKTEMPLAR VOIDRAY CARRIER TEMPEST ORACLE PHOENIX "
            "MOTHERSHIP OBSERVER IMMORTAL WARPPRISM COLOSSUS DISRUPTOR",
        ),
        ("MORPH", "ARCHON"),
        (
            "BUILD",
            "PYLON ASSIMILATOR NEXUS GATEWAY CYBERNETICSCORE FORGE TWILIGHTCOUNCIL ROBOTICSFACILITY STARGATE "
            "TEMPLARARCHIVE DARKSHRINE ROBOTICSBAY FLEETBEACON PHOTONCANNON SHIELDBATTERY",
        ),
        (
            "RESEARCH",
            "WARPGATERESEARCH PROTOSSAIRWEAPONSLEVEL1 PROTOSSAIRWEAPONSLEVEL2 PROTOSSAIRWEAPONSLEVEL3 "
            "PROTOSSAIRARMORSLEVEL1 PROTOSSAIRARMORSLEVEL2 PROTOSSAIRARMORSLEVEL3 ADEPTPIERCINGATTACK BLINKTECH CHARGE "
            "PROTOSSGROUNDWEAPONSLEVEL1 PROTOSSGROUNDWEAPONSLEVEL2 PROTOSSGROUNDWEAPONSLEVEL3 "
            "PROTOSSGROUNDARMORSLEVEL1 PROTOSSGROUNDARMORSLEVEL2 PROTOSSGROUNDARMORSLEVEL3 PROTOSSSHIELDSLEVEL1 "
            "PROTOSSSHIELDSLEVEL2 PROTOSSSHIELDSLEVEL3 EXTENDEDTHERMALLANCE GRAVITICDRIVE OBSERVERGRAVITICBOOSTER "
            "PSISTORMTECH VOIDRAYSPEEDUPGRADE PHOENIXRANGEUPGRADE TEMPESTGROUNDATTACKUPGRADE",
        ),
        ("SCOUTING", "PROBE OBSERVER ZEALOT PHOENIX"),
    )
    for noun in nouns.split()
)
ACTIONS = (
    *_OWN_NAMES,
    "MULTI-ATTACK",
    "MULTI-RETREAT",
    "CHRONOBOOST NEXUS",
    "CHRONOBOOST CYBERNETICSCORE",
    "CHRONOBOOST TWILIGHTCOUNCIL",
    "CHRONOBOOST STARGATE",
    "CHRONOBOOST FORGE",
    "EMPTY ACTION",
)
"""The 72 actions in the order of their ids."""

NUM_ACTIONS = len(ACTIONS)
ACTION_ID = {name: index for index, name in enumerate(ACTIONS)}

LEVELS = (
    "VeryEasy",
    "Easy",
    "Medium",
    "MediumHard",
    "Hard",
    "Harder",
    "VeryHard",
    "CheatVision",
    "CheatMoney",
    "CheatInsane",
)
"""Names of the built-in opponents of StarCraft II; level 1 is the first."""

MAX_TYPES = 20
"""Width of the tables of types."""

PROTOSS_UNITS = (
    "Probe",
    "Zealot",
    "Adept",
    "Stalker",
    "Sentry",
    "HighTemplar",
    "DarkTemplar",
    "VoidRay",
    "Carrier",
    "Tempest",
    "Oracle",
    "Phoenix",
    "Mothership",
    "Observer",
    "Immortal",
    "WarpPrism",
    "Colossus",
    "Disruptor",
    "Archon",
)
PROTOSS_STRUCTURES = (
    "Pylon",
    "Assimilator",
    "Nexus",
    "Gateway",
    "CyberneticsCore",
    "Forge",
    "TwilightCouncil",
    "RoboticsFacility",
    "Stargate",
    "TemplarArchive",
    "DarkShrine",
    "RoboticsBay",
    "FleetBeacon",
    "PhotonCannon",
    "ShieldBattery",
    "WarpGate",
)
PROTOSS_UPGRADES = (
    "WarpGateResearch",
    "ProtossAirWeaponsLevel1",
    "ProtossAirWeaponsLevel2",
    "ProtossAirWeaponsLevel3",
    "ProtossAirArmorsLevel1",
    "ProtossAirArmorsLevel2",
    "ProtossAirArmorsLevel3",
    "AdeptPiercingAttack",
    "BlinkTech",
    "Charge",
    "ProtossGroundWeaponsLevel1",
    "ProtossGroundWeaponsLevel2",
    "ProtossGroundWeaponsLevel3",
    "ProtossGroundArmorsLevel1",
    "ProtossGroundArmorsLevel2",
    "ProtossGroundArmorsLevel3",
    "ProtossShieldsLevel1",
    "ProtossShieldsLevel2",
    "ProtossShieldsLevel3",
    "ExtendedThermalLance",
    "GraviticDrive",
    "ObserverGraviticBooster",
    "PsiStormTech",
    "VoidRaySpeedUpgrade",
    "PhoenixRangeUpgrade",
    "TempestGroundAttackUpgrade",
)
ZERG_UNITS = (
    "Drone",
    "Overlord",
    "Overseer",
    "Queen",
    "Zergling",
    "Baneling",
    "Roach",
    "Ravager",
    "Hydralisk",
    "LurkerMP",
    "Mutalisk",
    "Corruptor",
    "BroodLord",
    "Infestor",
    "SwarmHostMP",
    "Viper",
    "Ultralisk",
)
ZERG_STRUCTURES = (
    "Hatchery",
    "Lair",
    "Hive",
    "Extractor",
    "SpawningPool",
    "EvolutionChamber",
    "RoachWarren",
    "BanelingNest",
    "HydraliskDen",
    "LurkerDenMP",
    "InfestationPit",
    "Spire",
    "GreaterSpire",
    "UltraliskCavern",
    "NydusNetwork",
    "SpineCrawler",
    "SporeCrawler",
)
ZERG_UPGRADES = (
    "zerglingmovementspeed",
    "zerglingattackspeed",
    "CentrificalHooks",
    "GlialReconstitution",
    "EvolveMuscularAugments",
    "EvolveGroovedSpines",
    "ChitinousPlating",
    "ZergMeleeWeaponsLevel1",
    "ZergMeleeWeaponsLevel2",
    "ZergMeleeWeaponsLevel3",
    "ZergMissileWeaponsLevel1",
    "ZergMissileWeaponsLevel2",
    "ZergMissileWeaponsLevel3",
    "ZergGroundArmorsLevel1",
    "ZergGroundArmorsLevel2",
    "ZergGroundArmorsLevel3",
    "ZergFlyerWeaponsLevel1",
    "ZergFlyerWeaponsLevel2",
    "ZergFlyerWeaponsLevel3",
    "ZergFlyerArmorsLevel1",
    "ZergFlyerArmorsLevel2",
    "ZergFlyerArmorsLevel3",
)

# Keys of the observation, spelt as the original spells them.
RESOURCE_KEYS = ("worker_supply", "mineral", "gas", "supply_left", "supply_cap", "supply_used", "army_supply")
"""Without `game_time`, which comes first."""
BUILDING_KEYS = (
    "nexus_count",
    "pylon_count",
    "gas_buildings_count",
    "gateway_count",
    "forge_count",
    "photon_cannon_count",
    "shield_battery_count",
    "warp_gate_count",
    "cybernetics_core_count",
    "twilight_council_count",
    "robotics_facility_count",
    "statgate_count",
    "templar_archives_count",
    "dark_shrine_count",
    "robotics_bay_count",
    "fleet_beacon_count",
)
BUILDING_TYPES = (
    "Nexus",
    "Pylon",
    "Assimilator",
    "Gateway",
    "Forge",
    "PhotonCannon",
    "ShieldBattery",
    "WarpGate",
    "CyberneticsCore",
    "TwilightCouncil",
    "RoboticsFacility",
    "Stargate",
    "TemplarArchive",
    "DarkShrine",
    "RoboticsBay",
    "FleetBeacon",
)
UNIT_KEYS = (
    "probe_count",
    "Zealot_count",
    "stalker_count",
    "sentry_count",
    "adept_count",
    "high_templar_count",
    "dark_templar_count",
    "immortal_count",
    "colossus_count",
    "disruptor_count",
    "archon_count",
    "observer_count",
    "warp_prism_count",
    "phoenix_count",
    "voidray_count",
    "Oracle_count",
    "Carrier_count",
    "tempest_count",
    "mothership_count",
)
UNIT_TYPES = (
    "Probe",
    "Zealot",
    "Stalker",
    "Sentry",
    "Adept",
    "HighTemplar",
    "DarkTemplar",
    "Immortal",
    "Colossus",
    "Disruptor",
    "Archon",
    "Observer",
    "WarpPrism",
    "Phoenix",
    "VoidRay",
    "Oracle",
    "Carrier",
    "Tempest",
    "Mothership",
)
PLANNING_STRUCTURE_KEYS = tuple(f"planning_{key.replace('statgate', 'stargate')}" for key in BUILDING_KEYS)
PLANNING_UNIT_KEYS = tuple(f"planning_{key}" for key in UNIT_KEYS)
RESEARCH_KEYS = {
    "cybernetics_core": {
        "warpgate_research_status": "WarpGateResearch",
        **{f"protoss_air_armor_level_{n}_research_status": f"ProtossAirArmorsLevel{n}" for n in (1, 2, 3)},
        **{f"protoss_air_weapon_level_{n}_research_status": f"ProtossAirWeaponsLevel{n}" for n in (1, 2, 3)},
    },
    "forge": {
        **{f"protoss_ground_armor_level_{n}_research_status": f"ProtossGroundArmorsLevel{n}" for n in (1, 2, 3)},
        **{f"protoss_ground_weapon_level_{n}_research_status": f"ProtossGroundWeaponsLevel{n}" for n in (1, 2, 3)},
        **{f"protoss_shield_level_{n}_research_status": f"ProtossShieldsLevel{n}" for n in (1, 2, 3)},
    },
    "twilight_council": {
        "blink_research_status": "BlinkTech",
        "charge_research_status": "Charge",
        "resonating_glaives_research_status": "AdeptPiercingAttack",
    },
    "robotics_bay": {
        "extended_thermal_lance_research_status": "ExtendedThermalLance",
        "GRAVITICDRIVE_research_status": "GraviticDrive",
        "OBSERVERGRAVITICBOOSTER_research_status": "ObserverGraviticBooster",
    },
    "fleet_beacon": {
        "PHOENIXRANGEUPGRADE_research_status": "PhoenixRangeUpgrade",
        "VOIDRAYSPEEDUPGRADE_research_status": "VoidRaySpeedUpgrade",
    },
    "templar_archives": {"PSISTORMTECH_research_status": "PsiStormTech"},
    "dark_shrine": {"SHADOWSTRIKE_research_status": ""},
}
"""Keys by building, each with the upgrade; the original shows the dark templar's, which none of its actions starts."""

NUM_SHOWN = len(RESOURCE_KEYS) + 2 * len(BUILDING_KEYS) + 2 * len(UNIT_KEYS) + sum(map(len, RESEARCH_KEYS.values()))

ENEMY_UNIT_KEYS = tuple(f"enemy_UnitTypeId.{name.upper()}" for name in ZERG_UNITS)
ENEMY_STRUCTURE_KEYS = tuple(f"enemy_UnitTypeId.{name.upper()}" for name in ZERG_STRUCTURES)
ENEMY_KEYS = ("unit", "structure", "remembered_unit")
