"""Arguments of the commands as dataclasses, and the options of `marl train`."""

import dataclasses
import sys
from typing import Annotated, Any, Literal

import tyro
import yaml
from tyro.conf import OmitArgPrefixes, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from marl.config import ALGORITHM_REGISTRIES, PARTS, RunConfig, algorithm_options, flatten
from marl.errors import ConfigError, UnknownNameError, unknown_name_message
from marl.experiments.help import flag_names, print_help, wants_help
from marl.registry import AGENTS, ENVS, find_env
from marl.settings import LearnConfig

ESSENTIAL = ("agent_credit", "token_credit", "agent_updates", "objective", "advantage", "ratio_level")
"""Settings of learning that tell one algorithm from another."""
INTRA_STEP_FIELDS = ("gamma_intra", "lambda_intra")
"""Settings of the links inside a step. They have no effect without sequential links."""


def algorithm_changes(config: RunConfig, base: RunConfig) -> list[str]:
    """Return a line for each setting in which the run differs from the algorithm that its agent is named for."""
    mine, usual = flatten(config), flatten(base)
    linked = "sequential" in (config.learn.agent_credit, config.learn.token_credit)
    return [
        f"{name}={mine[name]!r}, where {config.agent} has {usual[name]!r}: this run is a variant of {config.agent}"
        for name in (*ESSENTIAL, *(INTRA_STEP_FIELDS if linked else ()))
        if name in mine and name in usual and mine[name] != usual[name]
    ]


def refuse_others_options(args: list[str], base: RunConfig, names: dict[str, str], chosen: dict[str, Any]) -> None:
    """Raise ConfigError for an option that other agents, environments, advantages or objectives have.

    `names` are the advantage and the objective of the run, and `chosen` the options of all four.
    """
    parts = {name: getattr(base, name) for name in PARTS} | chosen
    known = {f.name for part in (base, *parts.values()) for f in dataclasses.fields(part)}
    names = {"agent": base.agent, "env": base.env} | names
    for word in args:
        flag = word.partition("=")[0]
        name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        if not flag.startswith("--") or name in known:
            continue
        for kind, registry in (("agent", AGENTS), ("env", ENVS), *ALGORITHM_REGISTRIES.items()):
            if owners := [other for other in registry.names() if has_option(registry.entries[other].options, name)]:
                raise ConfigError(f"{kind} {names[kind]!r} has no option {flag}; these have it: {', '.join(owners)}")


def has_option(options: type, name: str) -> bool:
    """Return True if a dataclass of options has a field of this name."""
    return name in {f.name for f in dataclasses.fields(options)}


def parse(base: RunConfig, args: list[str]) -> RunConfig:
    """Return the configuration that `args` make of `base`.

    The options of agent, environment, advantage and objective are flat fields too.
    """
    names = {kind: scan_flag(args, f"--{kind}", getattr(base.learn, kind)) for kind in ALGORITHM_REGISTRIES}
    parts = {name: getattr(base, name) for name in ("agent_options", "env_options")}
    parts |= algorithm_options(base, names)
    refuse_others_options(args, base, names, parts)
    fields = [(name, type(part), dataclasses.field(default=part)) for name, part in parts.items()]
    learn = learn_with_choices()
    fields.append(("learn", learn, dataclasses.field(default_factory=learn)))
    for name, kind, default_value, about in OWN_OPTIONS:
        fields.append((name, Annotated[kind, arg(help=about)], dataclasses.field(default=default_value)))  # pyright: ignore[reportArgumentType]
    unchecked = {"__post_init__": lambda _: None}  # the parts fit together once they are parsed
    typed = dataclasses.make_dataclass("Train", fields, bases=(RunConfig,), namespace=unchecked, frozen=True)
    values: dict[str, Any] = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)} | parts
    default = typed(**values | {"learn": learn(**vars(base.learn) | names)})
    parsed = parse_args(typed, "marl train", args, default, TRAIN_HELP, unread=unread_options(base))
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(RunConfig)}
    values["learn"] = LearnConfig(**vars(parsed.learn))
    config = RunConfig(**values)
    if config.env != base.env:
        raise ConfigError(f"environment {parsed.env!r} must come first: marl train {parsed.env} --option value ...")
    return config


def unread_options(config: RunConfig) -> frozenset[str]:
    """Return the names of the family's options that no task of the run has."""
    found = [find_env(task.name) for task in config.tasks]
    known = {f.name for f in dataclasses.fields(config.env_options)}
    read = {name for entry, task in found for name in (known if entry.reads is None else entry.reads(task))}
    return frozenset(known - read)


def learn_with_choices() -> type:
    """Return LearnConfig with the registered advantages and objectives in the help of their options."""
    fields = []
    for kind, registry in ALGORITHM_REGISTRIES.items():
        known = "; ".join(f"{name}: {registry.entries[name].summary}" for name in registry.names())
        listed = ", ".join(registry.names())
        about = arg(help=f"{kind.capitalize()}: {listed}, or FILE.py:CLASS. {known}.", metavar="NAME")
        fields.append((kind, Annotated[str, about], dataclasses.field(default=getattr(LearnConfig, kind))))
    return dataclasses.make_dataclass("Learn", fields, bases=(LearnConfig,), frozen=True)


def parse_args(
    kind: type,
    prog: str,
    args: list[str],
    default: Any = None,
    about: str = "",
    *,
    unread: frozenset[str] = frozenset(),
) -> Any:
    """Return an instance of the dataclass `kind` made of the arguments, or print its help and exit.

    `unread`: names of options without effect, see `print_help`. Raises UnknownNameError for an unknown option.
    """
    if wants_help(args):
        print_help(kind, prog, args, default, about, unread=unread)
        sys.exit(0)
    defaults = {} if default is None else {"default": default}
    flat = (OmitArgPrefixes,)
    description = about or kind.__doc__
    parsed, unknown = tyro.cli(
        kind,
        prog=prog,
        args=args,
        config=flat,
        description=description,
        registry=KEYWORDS,
        return_unknown_args=True,
        **defaults,
    )
    if unknown:
        name = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
        what, listed = "option" if name.startswith("-") else "argument", f"`{prog} --help-all` lists the options"
        raise UnknownNameError(unknown_name_message(f"{what} of {prog}", name, flag_names(kind, default), listed))
    return parsed


KEYWORDS = ConstructorRegistry()


@KEYWORDS.primitive_rule
def keywords(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """Keyword arguments as one word in YAML, for example '{max_cycles: 25, local_ratio: 0.5}'."""
    if info.type != dict[str, Any]:
        return None

    def parse_one(words: list[str]) -> dict[str, Any]:
        try:
            value = yaml.safe_load(words[0])
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ValueError(f"{words[0]!r:.200} is no YAML of the form '{{name: value, ...}}'") from error
        if not isinstance(value, dict):
            raise ValueError(f"{words[0]!r} is not of the form '{{name: value, ...}}'")
        return value

    def is_one(value: Any) -> bool:
        return isinstance(value, dict)

    def show(value: dict[str, Any]) -> list[str]:
        return [yaml.safe_dump(value, default_flow_style=True).strip()]

    return PrimitiveConstructorSpec(
        nargs=1, metavar="{NAME: VALUE, ...}", instance_from_str=parse_one, is_instance=is_one, str_from_instance=show
    )


TRAIN_HELP = """Train an agent in an environment.

The defaults shown are those of the tuned preset of this environment and agent, if there is one. A run's folder holds
config.yaml, status.json, metrics.jsonl, evaluations.jsonl, TensorBoard events and checkpoints."""

OWN_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("preset", str, "", "Preset to start from (see `marl list presets`), or none for the defaults."),
    ("config", str, "", "YAML file of settings to start from, such as a run's config.yaml."),
    ("trust", bool, False, "Run the code that --config names, although somebody else made its run."),
    ("if_exists", Literal["error", "skip", "resume"], "error", "Treatment of a run of this --name that is there."),
)
"""Options of `marl train` that are no settings of the run: name, type, default, help."""


def scan_flag(args: list[str], flag: str, default: str) -> str:
    """Return the value of a flag before the options are parsed: the last one given, or `default`."""
    for i, text in reversed(list(enumerate(args))):
        if text == flag and i + 1 < len(args):
            return args[i + 1]
        if text.startswith(f"{flag}="):
            return text.partition("=")[2]
    return default
