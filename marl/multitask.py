"""Training on several environments at once with one set of parameters."""

from dataclasses import dataclass

from marl.collector import Collector
from marl.errors import ConfigError
from marl.policy import Policy
from marl.types import EnvSpec
from marl.value_norm import ValueNorm


@dataclass(frozen=True)
class Task:
    """One environment of a run, with its policy, collector and value normalizer.

    Each task normalizes its own values. Otherwise a task with large rewards would dominate the value loss.
    """

    name: str
    policy: Policy
    value_norm: ValueNorm
    collector: Collector


def share_parameters(policy: Policy, original: Policy, names: tuple[str, str]) -> None:
    """Give `policy` the parameters and buffers of `original` that belong in a checkpoint.

    Buffers that depend on the environment alone, such as the number of agents, stay its own. `Policy.share_backbone`
    shares weights that are no module parameters. Raises ConfigError, with the `names` of the two environments, if the
    parameters differ in shape.
    """
    shapes = [{name: list(x.shape) for name, x in each.state_dict().items()} for each in (policy, original)]
    for name in [*shapes[0], *shapes[1]]:
        here, there = (shape.get(name) for shape in shapes)
        if here != there:
            unlike = f"the parameters {name!r} have the shape {there} in {names[1]} and {here} in {names[0]}"
            raise ConfigError(f"{unlike}, so one agent cannot learn both; {one_shape(policy.spec, original.spec)}")
    policy.share_backbone(original)
    tensors = original.state_dict(keep_vars=True)
    for name in tensors:
        owner, _, leaf = name.rpartition(".")
        setattr(policy.get_submodule(owner), leaf, tensors[name])


def one_shape(mine: EnvSpec, other: EnvSpec) -> str:
    """Return the advice for parameters of the same shape in both environments."""
    agents = (
        "an agent for teams of any size: mat, its relatives, mappo or ippo, with parameters_per=team (mappo, "
        "ippo and mat-dec also with bptt_steps=0)"
    )
    if mine.entities is not None and other.entities is not None:
        widths, others = (each.features() for each in (mine.entities, other.entities))
        if widths != others:
            return f"their entities have {others} and {widths} features; give tasks of one kind"
        return f"observations are made of entities, so take {agents}"
    if not mine.observation_sizes:
        return "give tasks with equal spaces"
    return f"give tasks with equal spaces, or with observations made of entities (SMAC: layout=entities) to {agents}"
