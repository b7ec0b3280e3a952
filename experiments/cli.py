"""The `marl` command."""

import os

# Waiting threads sleep. On a busy machine a spinning barrier makes acting many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import dataclasses
import errno
import io
import logging
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from marl.config import RESUMABLE_FIELDS
from marl.errors import ConfigError, MarlError
from marl.experiments.arguments import algorithm_changes, parse, parse_args, scan_flag
from marl.experiments.help import wants_help
from marl.registry import AGENTS, NoOptions, find_env, find_family, unknown_name_message
from marl.run_folder import read_status
from marl.settings import MAX_EPISODE_STEPS, require_episodes

USAGE = """usage: marl COMMAND ...

  train ENV [--agent NAME] [--option value ...]   train an agent, with a tuned preset if there is one
  resume RUN [--steps N]                          continue a run from its last checkpoint
  eval RUN | ENV [--agent NAME]                   play evaluation episodes and report the returns
  play RUN | ENV [--agent NAME]                   watch an episode: mp4 or gif, or text
  report RUN ... [--metric success]               compare seeds and agents: tables, statistics, HTML page, figures
  tensorboard RUN ...                             open TensorBoard on runs, under names that read well
  suite NAME [--agents NAME ...] [--seeds N]      run a benchmark over tasks, agents and seeds, and report on it
  sweep FILE                                      search over options: a grid, random samples or a list
  transfer TASK+TASK --target TASK                pre-train, then learn an unseen task from little data: a table
  list envs | agents | advantages | ...           list what is available, and what to install
  check-env ENV                                   test an environment against the rules of the suite
  check-agent AGENT                               test an agent against the rules of the suite
  bench [PART ...]                                measure speed on this machine

`marl COMMAND --help` shows the options. Example:

  marl train mamujoco/HalfCheetah-6x1 --agent mat --steps 1000000 --seed 1
"""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk. Without a file name they come from a stream that is open already, such as stdout."""


def main() -> None:
    """Run the command line. It ends quietly if its output is not read to the end, as in `marl list envs | head`.

    Characters that the output's encoding lacks are printed as escape sequences.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            dispatch()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError as error:
        if not stdout_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards the rest of the buffer
        print(*getattr(error, "__notes__", []), sep="\n", end="", file=sys.stderr)
        sys.exit(141)  # the exit status of a program killed by SIGPIPE
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with suppress(OSError):  # stderr may be the same file
            notes = getattr(error, "__notes__", [])
            print(f"marl: cannot write the output: {error.strerror}", *notes, sep="\n", file=sys.stderr)
        sys.exit(2)


def open_closed_streams() -> None:
    """Open closed standard streams on the null device, so that no other file gets their descriptors."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the program


def stdout_closed() -> bool:
    """Return True if the pipe of stdout is broken, and not one of an environment."""
    output = select.poll()
    output.register(1, 0)  # errors alone
    return any(event & select.POLLERR for _, event in output.poll(0))


def working_folder_notes(args: list[str], error: MarlError) -> list[str]:
    """Return a note on where a run was made if a module that it names is not found here."""
    if len(args) < 2 or not isinstance(error.__cause__, ModuleNotFoundError):
        return []
    made = read_status(Path(args[1])).get("working_folder")
    return (
        [f"the run was made in the folder {made}; start the command there"] if made not in (None, os.getcwd()) else []
    )


def dispatch() -> None:
    """Run a command. An error that the user can act on is one message on stderr, and exit status 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    args = sys.argv[1:]
    # Users keep factories in the working folder. It comes last, so its files cannot hide other modules.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    try:
        for arg in args:
            if not arg.isascii() and any("\ud800" <= letter <= "\udfff" for letter in arg):
                raise ConfigError(f"argument {arg!a:.80} is not UTF-8; rename what it names")
        if args[0] not in COMMANDS:
            raise ConfigError(unknown_name_message("command", args[0], COMMANDS))
        COMMANDS[args[0]](args[1:])
    except MarlError as error:
        notes = "".join(f"\n{note}" for note in (*getattr(error, "__notes__", []), *working_folder_notes(args, error)))
        rank = f", rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        print(f"marl{rank}: {error}{notes}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        name = str(error.filename)
        shown = name if len(name) < 200 else f"{name[:60]}..."
        print(f"marl: {error.strerror}: {shown}; name another file or folder", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        from marl.oom import ran_out_of_memory

        if not ran_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        print(
            f"marl: out of memory ({reason}); take fewer --num-envs or --rollout-steps, or a smaller model",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("marl: stopped at once; a run continues from its last checkpoint with `marl resume`", file=sys.stderr)
        sys.exit(130)


def train(args: list[str]) -> None:
    """Run `marl train`."""
    from marl.experiments.api import make_config
    from marl.run import Extras, start

    file, preset = scan_flag(args, "--config", ""), scan_flag(args, "--preset", "")
    env = args[0] if args and not args[0].startswith("-") else None
    if env is None and not file:
        if not wants_help(args):
            raise ConfigError("train what? Name an environment first: marl train ENV ...; `marl list envs` shows them")
        env = "toy/climbing"
    agent, trust = scan_flag(args, "--agent", "") or None, "--trust" in args
    if trust and not file:
        raise ConfigError("--trust is for a --config of somebody else's run; leave it out")
    base, source = make_config(Path(file) if file else None, env, agent, preset, trust)
    config = parse(base, args)
    notes = (f"settings: {source}", *algorithm_changes(config, base))
    start(config, Extras(notes=notes), scan_flag(args, "--if-exists", "error"))  # pyright: ignore[reportArgumentType]


def resume(args: list[str]) -> None:
    """Run `marl resume`."""
    from marl import run

    @dataclass(frozen=True)
    class Resume:
        """Continue a run from its last usable checkpoint, exactly where it stopped."""

        run: Positional[Path]
        """The run's folder."""
        steps: int | None = None
        """New number of environment steps to train for."""
        eval_interval: int | None = None
        """Iterations between two evaluations."""
        eval_episodes: int | None = None
        """Episodes of an evaluation."""
        eval_max_steps: int | None = None
        """Step limit of an evaluated episode, unless the environment declares a longer one."""
        checkpoint_interval: int | None = None
        """Iterations between two checkpoints."""
        keep_checkpoints: int | None = None
        """Latest checkpoints that are kept."""
        stop_return: float | None = None
        """Mean return of an evaluation at which the run stops."""
        workers: int | None = None
        """Processes that step the environments."""
        restart_workers: bool | None = None
        """Restart an environment worker that dies or raises, instead of stopping the run."""
        on_nonfinite: Literal["stop", "drop"] | None = None
        """Treatment of a NaN or infinite observation or reward: stop the run, or drop the episode."""
        env_threads: int | None = None
        """Threads of a natively batched environment."""
        trust: bool = False
        """Run the code that the run's files name, although somebody else made the run."""

    parsed = parse_args(Resume, "marl resume", args)
    changes = {name: value for name, value in vars(parsed).items() if name in RESUMABLE_FIELDS and value is not None}
    run.resume(parsed.run, changes, parsed.trust)


@dataclass(frozen=True)
class PlayOptions:
    """Options that `eval` and `play` share."""

    subject: Annotated[Positional[str], arg(metavar="RUN|ENV")]
    """Folder of a run or of a checkpoint, or an environment for an agent that needs no training."""
    agent: str = ""
    """Agent, if the subject is an environment; empty is random."""
    env: str = ""
    """Environment to play in; empty is the one of the run. In a family of the run, the run's options are kept."""
    episodes: int = 1
    """Episodes to play."""
    which: str = "best"
    """Checkpoint: best, last, or a number of steps."""
    act: Literal["run", "greedy", "sampled"] = "run"
    """Actions: run (as the run's own evaluations), greedy (the most probable ones) or sampled."""
    trust: bool = False
    """Run the code that the run's files name, although somebody else made the run."""


def evaluate(args: list[str]) -> None:
    """Run `marl eval`."""
    from marl.experiments.play import print_eval

    @dataclass(frozen=True)
    class Eval(PlayOptions):
        """Play episodes on the test seeds and report the returns.

        The test seeds are the same for every agent, so comparisons are paired. Training chose the best checkpoint on
        other seeds, the validation seeds."""

        episodes: int = 32
        """Episodes to play."""
        act: Literal["run", "greedy", "sampled", "both"] = "run"  # pyright: ignore[reportIncompatibleVariableOverride]
        """Actions: run (as the run's own evaluations), greedy (the most probable ones), sampled, or both side by side.
        """
        num_envs: int = 16
        """Environments stepped together."""
        eval_max_steps: int = MAX_EPISODE_STEPS
        """Step limit of an episode, unless the environment declares a longer one."""
        out: Path | None = None
        """File for one JSON line per episode."""

    print_eval(parse_play_args(Eval, "marl eval", args))


def parse_play_args(kind: type, prog: str, args: list[str]) -> Any:
    """Parse `args`. If the first argument names an environment, its options are flags too.

    The result holds them as `env_options`.
    """
    subject = args[0] if args and not args[0].startswith("-") else ""
    is_factory = ":" in subject and not Path(subject).exists()
    if not subject or Path(subject).exists() or (subject.startswith(("runs/", "/")) and not is_factory):
        return parse_args(kind, prog, args)
    options = find_family(subject).options
    field = ("env_options", options, dataclasses.field(default_factory=options))
    typed = dataclasses.make_dataclass(kind.__name__, [field], bases=(kind,), frozen=True)
    return parse_args(typed, prog, args, about=kind.__doc__ or "")


def play(args: list[str]) -> None:
    """Run `marl play`."""
    from marl.experiments.play import show

    @dataclass(frozen=True)
    class Play(PlayOptions):
        """Watch episodes: as a video, as text, or as the transcript of a language agent."""

        out: Path | None = None
        """File of the video, .mp4 or .gif; by default play.mp4 in the run's folder. A transcript: play.png."""
        fps: int | None = None
        """Frames per second of a video; by default 30."""
        stop_after: int = MAX_EPISODE_STEPS
        """Step limit of an episode."""
        view: Literal["video", "text", "transcript"] | None = None
        """View of the episode. The default is the transcript of a language agent (prompts, actions, advantage of each
        token), else a video if the environment draws pictures, else text."""
        attention: bool = False
        """Draw the attention of each agent to the actions of the agents that decided before it (agent mat)."""

    parsed = parse_play_args(Play, "marl play", args)
    require_episodes("episodes", parsed.episodes)
    for name in ("fps", "stop_after"):
        if (value := getattr(parsed, name)) is not None and value < 1:
            raise ConfigError(f"{name}={value}; give 1 or more")
    show(parsed)


def report_runs(args: list[str]) -> None:
    """Run `marl report`."""
    from marl.experiments.report.command import ReportCommand, compare_runs

    compare_runs(parse_args(ReportCommand, "marl report", args))


def tensorboard(args: list[str]) -> None:
    """Run `marl tensorboard`."""
    from marl.experiments.board import BoardCommand, open_board

    open_board(parse_args(BoardCommand, "marl tensorboard", args))


def suite(args: list[str]) -> None:
    """Run `marl suite`."""
    from marl.experiments.suite.command import SuiteCommand, run_suite
    from marl.experiments.suite.suite import known_suites

    if not wants_help(args) and (not args or args[0].startswith("-")):
        raise ConfigError(f"name a suite first, one of {', '.join(known_suites())}, or a .yaml file")
    sys.exit(run_suite(parse_args(SuiteCommand, "marl suite", args)))


def sweep(args: list[str]) -> None:
    """Run `marl sweep`."""
    from marl.experiments.suite.command import SweepCommand, run_sweep

    if not wants_help(args) and (not args or args[0].startswith("-")):
        raise ConfigError("name the file of a sweep first: marl sweep FILE; see docs/suites.md")
    sys.exit(run_sweep(parse_args(SweepCommand, "marl sweep", args)))


def transfer(args: list[str]) -> None:
    """Run `marl transfer`."""
    from marl.experiments.transfer import Transfer
    from marl.experiments.transfer import transfer as run

    run(parse_args(Transfer, "marl transfer", args))


def list_things(args: list[str]) -> None:
    """Run `marl list`."""
    from marl.experiments.listing import ListCommand, print_list

    print_list(parse_args(ListCommand, "marl list", args).what)


def check(args: list[str]) -> None:
    """Run `marl check-env`."""
    from marl.envs.testing import check_env
    from marl.errors import named_error
    from marl.registry import EnvFactory

    @dataclass(frozen=True)
    class CheckEnv:
        """Test an environment against the rules, with random actions."""

        env: Positional[str]
        """The environment."""
        episodes: int = 2
        """Episodes to play."""
        seed: int = 0
        """Seed of the episodes and of the actions."""
        options: Any = dataclasses.field(default_factory=NoOptions)

    name = args[0] if args and not args[0].startswith("-") else "toy/climbing"
    if "+" in name or "," in name:
        raise ConfigError(f"{name!r} is more than a name; check environments one by one, with options as --name value")
    kind = find_env(name)[0].options
    typed = dataclasses.make_dataclass(
        "CheckEnv", [("options", kind, dataclasses.field(default_factory=kind))], bases=(CheckEnv,), frozen=True
    )
    parsed = parse_args(typed, "marl check-env", args, about=CheckEnv.__doc__ or "")
    require_episodes("episodes", parsed.episodes)
    options = {f.name: getattr(parsed.options, f.name) for f in dataclasses.fields(parsed.options)}
    try:
        lines = check_env(EnvFactory(parsed.env, options), parsed.episodes, parsed.seed)
    except MarlError:
        raise
    except (Exception, SystemExit) as error:
        raise named_error(error, parsed.env) from error
    print(*lines, sep="\n")
    print(f"{parsed.env} keeps every rule")


def check_an_agent(args: list[str]) -> None:
    """Run `marl check-agent`."""
    from marl.agents.testing import check_agent
    from marl.errors import named_error

    @dataclass(frozen=True)
    class CheckAgent:
        """Test an agent against the rules of the suite, on toy environments of every kind that it supports."""

        agent: Positional[str]
        """The agent: a name, package.module:factory, or ./file.py:factory."""
        kinds: tuple[str, ...] = ()
        """Kinds of environments: discrete, continuous, mixed, entities, text, free text. By default all supported."""
        seed: int = 0
        """Seed of observations and actions."""
        own_options: Any = dataclasses.field(default_factory=NoOptions)

    name = args[0] if args and not args[0].startswith("-") else "mat"
    kind = AGENTS.get(name).options
    typed = dataclasses.make_dataclass(
        "CheckAgent", [("own_options", kind, dataclasses.field(default_factory=kind))], bases=(CheckAgent,), frozen=True
    )
    parsed = parse_args(typed, "marl check-agent", args, about=CheckAgent.__doc__ or "")
    options = {f.name: getattr(parsed.own_options, f.name) for f in dataclasses.fields(parsed.own_options)}
    try:
        lines = check_agent(parsed.agent, parsed.kinds or None, options, parsed.seed)
    except MarlError:
        raise
    except (Exception, SystemExit) as error:
        raise named_error(error, parsed.agent) from error
    print(*lines, sep="\n")
    print(f"{parsed.agent} keeps every rule")


def bench(args: list[str]) -> None:
    """Run `marl bench`."""
    from marl.experiments.bench.main import Bench, run

    run(parse_args(Bench, "marl bench", args))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "play": play,
    "report": report_runs,
    "tensorboard": tensorboard,
    "suite": suite,
    "sweep": sweep,
    "transfer": transfer,
    "list": list_things,
    "check-env": check,
    "check-agent": check_an_agent,
    "bench": bench,
}

if __name__ == "__main__":
    main()
