"""`marl list`: tables of what is registered."""

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from marl.config import ALGORITHM_REGISTRIES
from marl.experiments.presets import PRESETS
from marl.experiments.suite.plan import read_file
from marl.experiments.suite.suite import SuiteFile, known_suites
from marl.registry import AGENTS, ENVS, missing


@dataclass(frozen=True)
class ListCommand:
    """List what is registered, and what must be installed for it."""

    what: Positional[Literal["envs", "agents", "advantages", "objectives", "presets", "suites"]]
    """Environments, agents, advantages, objectives, presets or suites."""


def print_list(what: str) -> None:
    """Print the table of `what`, the install lines of absent simulators, and the plug-ins that failed to import."""
    tables = {"envs": env_table, "agents": agent_table, "presets": preset_table, "suites": suite_table}
    tables |= {f"{kind}s": partial(algorithm_table, kind) for kind in ALGORITHM_REGISTRIES}
    Console().print(tables[what]())
    if what == "envs":
        for name in ENVS.names():
            if absent := missing(ENVS.entries[name]):
                print(f"{name} needs {', '.join(absent)}; install with: {ENVS.entries[name].install}")
    registry = {"envs": ENVS, "agents": AGENTS} | {f"{kind}s": each for kind, each in ALGORITHM_REGISTRIES.items()}
    registry = registry.get(what)
    for name, problem in registry.broken.items() if registry else ():
        print(f"the plug-in {name!r} failed to import: {problem}", file=sys.stderr)


def env_table() -> Table:
    """Return the table of environments."""
    table = Table("environment", "what it is", "tasks", "simulator", title="Environments")
    for name in ENVS.names():
        entry = ENVS.entries[name]
        state = "[red]missing[/]" if missing(entry) else "[green]present[/]"
        table.add_row(name, entry.summary, " ".join(entry.tasks) or "any", state)
    table.add_row("PACKAGE.MODULE:FACTORY", "your own function that returns an environment", "", "")
    return table


def agent_table() -> Table:
    """Return the table of agents."""
    table = Table("agent", "what it is", "learns", "settings that define it", title="Agents")
    for name in AGENTS.names():
        entry = AGENTS.entries[name]
        settings = "  ".join(f"{name}={value}" for name, value in entry.defaults.items())
        table.add_row(name, entry.summary, "yes" if entry.trains else "no", settings)
    return table


def algorithm_table(kind: str) -> Table:
    """Return the table of registered advantages or objectives, with their options."""
    table = Table(kind, "what it is", "options", title=f"{kind.capitalize()}s")
    for name in ALGORITHM_REGISTRIES[kind].names():
        entry = ALGORITHM_REGISTRIES[kind].entries[name]
        table.add_row(
            name, entry.summary, "  ".join(f"{f.name}={f.default}" for f in dataclasses.fields(entry.options))
        )
    table.add_row("FILE.py:CLASS", f"your own {kind}", "")
    return table


def preset_table() -> Table:
    """Return the table of presets; agents with equal settings share a row."""
    title = "Presets: chosen by environment and agent, or with --preset ENVIRONMENT+AGENT"
    table = Table(title=title, show_lines=True)
    for name in ("environment", "agents", "settings"):
        table.add_column(name, overflow="fold")
    alike: dict[tuple[str, str], list[str]] = {}
    for (env, agent), changes in PRESETS.items():
        alike.setdefault((env, "  ".join(f"{name}={value}" for name, value in changes.items())), []).append(agent)
    for (env, settings), agents in alike.items():
        table.add_row(env, ", ".join(agents), settings)
    return table


def suite_table() -> Table:
    """Return the table of the suites."""
    table = Table("suite", "title", "tasks", "agents", "scales")
    for name, path in known_suites().items():
        found = read_file(path, SuiteFile)
        table.add_row(name, found.title, str(len(found.tasks)), ", ".join(found.agents), ", ".join(found.scales))
    return table
