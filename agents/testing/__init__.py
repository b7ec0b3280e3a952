"""Conformance suite for agents: `check_agent` plays a policy on toy specs and holds it to the rules of `marl.Policy`.

It returns one line per checked kind of environment, and raises AgentContractError at the first broken rule. The
message starts with the number of the rule (see `Rule`), and names the place, the numbers and the page to read.
"""

from marl.agents.testing.check import check_agent
from marl.agents.testing.rules import Rule
from marl.agents.testing.specs import KINDS

__all__ = ["KINDS", "Rule", "check_agent"]
