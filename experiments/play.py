"""`marl eval` and `marl play`: evaluation tables, videos, text and transcripts of an agent."""

import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from marl.checkpoint.store import Checkpoint
from marl.config import RunConfig, default_config
from marl.episodes import never_stop, play_episodes
from marl.errors import ConfigError, MissingDependencyError, NonFiniteError, named_errors
from marl.evaluation import EpisodeRow, paired_seeds, run_episodes, summarize
from marl.files import whole_files, write_whole
from marl.policy import Policy, require_policy
from marl.policy_io import batch_of_one, load_checkpoint, make_policy
from marl.protocols import Env
from marl.registry import AGENTS, EnvFactory, find_family
from marl.run_folder import read_config
from marl.settings import require_episodes
from marl.stopping import stop_requests
from marl.transcript import record_transcript
from marl.trust import external_of_algorithm, external_of_env, require_trust
from marl.types import EnvSpec, Obs, VectorStep
from marl.value_norm import ValueNorm
from marl.vector import make_vector
from marl.vector.shard import close_env


@dataclasses.dataclass(frozen=True)
class LoadedAgent:
    """An agent and its environment. `folder` and `checkpoint` are None for an untrained agent."""

    config: RunConfig
    title: str
    folder: Path | None
    value_norm: ValueNorm
    checkpoint: Checkpoint | None = None
    trust: bool = False

    @property
    def task(self) -> EnvFactory:
        """The environment; the first one of a run on several."""
        return self.config.tasks[0]

    def greedy(self, parsed: Any) -> bool:
        """Return True to take the most probable actions."""
        return parsed.act == "greedy" or (parsed.act == "run" and not self.config.evaluation.eval_stochastic)


def load_agent(parsed: Any) -> LoadedAgent:
    """Load the run, checkpoint or environment that the subject names."""
    subject, agent, which = parsed.subject, parsed.agent, parsed.which
    path = Path(subject)
    if path.is_dir():
        if agent:
            raise ConfigError(f"{subject!r} is a run, which has its agent; leave out --agent")
        checkpoint_only = not (path / "config.yaml").exists() and (path / "manifest.json").exists()
        folder = path.parent.parent if checkpoint_only else path
        config, typed = read_config(folder), set()
        if parsed.env:
            config = config_for_env(config, parsed.env)
            typed = external_of_env(default_config(parsed.env, config.agent))
        require_trust(folder, (external_of_env(config) - typed) | external_of_algorithm(config), parsed.trust)
        root = path if checkpoint_only else path / "checkpoints"
        checkpoint = load_checkpoint(root, int(which) if re.fullmatch("[0-9]{1,18}", which) else which)
        title = f"{config.agent} on {config.env} after {checkpoint.step} steps ({checkpoint.path.name})"
        value_norm = ValueNorm(config.learn.value_norm_decay)
        value_norm.load_state_dict(checkpoint.tensors["value_norm"])
        return LoadedAgent(config, title, folder, value_norm, checkpoint, parsed.trust)
    if (path.parts[:1] == ("runs",) or path.is_absolute()) and ":" not in subject:
        raise ConfigError(f"there is no run {subject!r}; `ls runs` shows the runs")
    if which != "best" or parsed.trust:
        unused = "--trust" if parsed.trust else f"--which {which}"
        raise ConfigError(f"{subject!r} is no run's folder, and {unused} is for runs; leave it out")
    if parsed.env:
        raise ConfigError(f"{subject!r} is no run's folder, and --env is where a run of another plays; leave it out")
    agent = agent or "random"
    if AGENTS.get(agent).trains:
        raise ConfigError(
            f"{subject!r} is no run's folder, and agent {agent!r} must be trained first; give a folder of runs/, "
            "or an environment with --agent random"
        )
    config = default_config(subject, agent)
    if (chosen := getattr(parsed, "env_options", None)) is not None:
        config = dataclasses.replace(config, env_options=chosen)
    return LoadedAgent(config, f"{agent} on {subject}", None, ValueNorm(0.0))


def config_for_env(config: RunConfig, env: str) -> RunConfig:
    """Return the configuration for another environment, with the same options if it is of the same family."""
    entry = find_family(env)
    kept = config.env_options if entry.name == find_family(config.env).name else entry.options()
    return dataclasses.replace(config, env=env, env_options=kept)


def policy_for(subject: LoadedAgent, spec: EnvSpec) -> Policy:
    """Return the policy for one environment."""
    if subject.checkpoint is not None:
        return make_policy(subject.checkpoint, spec, subject.trust)
    made = AGENTS.get(subject.config.agent).make(spec, subject.config.agent_options)
    return require_policy(made, subject.config.agent)


def load_for_evaluation(parsed: Any) -> LoadedAgent:
    """Return `load_agent(parsed)`. Raises ConfigError first for numbers of episodes or environments that cannot be."""
    require_episodes("episodes", parsed.episodes)
    if parsed.num_envs < 1:
        raise ConfigError(f"num_envs={parsed.num_envs}; give 1 or more")
    return load_agent(parsed)


def print_eval(parsed: Any) -> None:
    """Run `marl eval`: print the mean return with its interval, and the means of the final infos."""
    subject = load_for_evaluation(parsed)
    if parsed.out is not None and not parsed.out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {parsed.out}: its folder does not exist")
    tasks, lines = subject.config.tasks, []
    stopped: list[bool] = []
    with stop_requests(lambda: stopped.append(True)):
        for task in tasks:
            title = subject.title if len(tasks) == 1 else f"{subject.title}: {task.label}"
            report = compare_acts if parsed.act == "both" else report_task
            table, rows = report(subject, task, title, parsed, lambda: bool(stopped))
            lines += rows
            if parsed.out is not None:
                write_whole(parsed.out, "\n".join(lines) + "\n")
            Console().print(table)
            if stopped:
                break
    if parsed.out is not None:
        print(f"wrote {parsed.out}")


def evaluate_task(
    subject: LoadedAgent, task: EnvFactory, parsed: Any, stop: Callable[[], bool] = never_stop
) -> list[EpisodeRow]:
    """Play `parsed.episodes` episodes on the test seeds of one environment; those that ended before `stop()`."""
    env = make_vector(task.name, task.options, min(parsed.episodes, parsed.num_envs))
    try:
        return run_episodes(
            policy_for(subject, env.spec),
            env,
            paired_seeds(parsed.episodes, "test"),
            subject.greedy(parsed),
            max_steps=parsed.eval_max_steps,
            stop=stop,
        )
    finally:
        env.close()


def summarize_titled(rows: Sequence[EpisodeRow], title: str) -> dict[str, float]:
    """Return `summarize(rows)`. Raises ConfigError without an episode, and NonFiniteError without a finite return."""
    if not rows:
        raise ConfigError(f"{title}: stopped before an episode had ended")
    values = summarize(rows)
    if "eval/return" not in values:
        raise NonFiniteError(f"{title}: the return of every episode is NaN or infinite")
    return values


def report_task(
    subject: LoadedAgent, task: EnvFactory, title: str, parsed: Any, stop: Callable[[], bool]
) -> tuple[Table, list[str]]:
    """Evaluate on the test seeds of one environment. Return a table, and a JSON line for each finished episode."""
    rows = evaluate_task(subject, task, parsed, stop)
    values = summarize_titled(rows, title)
    count = f"{len(rows)} episode{'s' if len(rows) > 1 else ''} on the test seeds"
    if len(rows) < parsed.episodes:
        count += f", stopped: {parsed.episodes - len(rows)} more had not ended; these are the longer ones"
    if cut := sum(row.cut for row in rows):
        count += f", {cut} cut at the step limit (--eval-max-steps)"
    how = "" if subject.checkpoint is None else f", {'greedy' if subject.greedy(parsed) else 'sampled'} actions"
    table = Table("", "mean", "95 % interval", "lowest", "highest", title=title, caption=count + how)
    returns, lengths = [row.episode_return for row in rows], [row.length for row in rows]
    low, high = values["eval/return_low"], values["eval/return_high"]
    interval = f"{low:.4g} to {high:.4g}" if np.isfinite(low) else "-"
    table.add_row("return", f"{values['eval/return']:.6g}", interval, f"{min(returns):.4g}", f"{max(returns):.4g}")
    table.add_row("length", f"{values['eval/length']:.6g}", "", str(min(lengths)), str(max(lengths)))
    shown = {"eval/return", "eval/return_low", "eval/return_high", "eval/length", "eval/dropped", "eval/cut"}
    for tag in sorted(values.keys() - shown):
        name, mean = tag.removeprefix("eval/"), values[tag]
        table.add_row(name.replace("_", " "), f"{mean:.1%}" if name == "success" else f"{mean:.6g}", "", "", "")
    note = {"task": task.label} if len(subject.config.tasks) > 1 else {}
    return table, [json.dumps(note | dataclasses.asdict(row)) for row in rows]


def compare_acts(
    subject: LoadedAgent, task: EnvFactory, title: str, parsed: Any, stop: Callable[[], bool]
) -> tuple[Table, list[str]]:
    """Evaluate with greedy and with sampled actions on the same test seeds.

    Returns a table with a row for each, and a JSON line for each finished episode. The caption says so if each mean is
    outside of the other's interval.
    """
    table = Table("actions", "return", "95 % interval", "success", "length", "episodes", title=title)
    lines, means, intervals = [], [], []
    for act in ("greedy", "sampled"):
        rows = evaluate_task(subject, task, dataclasses.replace(parsed, act=act), stop)
        values = summarize_titled(rows, title)
        means.append(values["eval/return"])
        intervals.append((values["eval/return_low"], values["eval/return_high"]))
        low, high = intervals[-1]
        shown = f"{low:.4g} to {high:.4g}" if np.isfinite(low) else "-"
        success = f"{values['eval/success']:.1%}" if "eval/success" in values else "-"
        table.add_row(act, f"{means[-1]:.6g}", shown, success, f"{values['eval/length']:.6g}", str(len(rows)))
        note = {"task": task.label} if len(subject.config.tasks) > 1 else {}
        lines += [json.dumps({"act": act} | note | dataclasses.asdict(row)) for row in rows]
    outside = [not low <= mean <= high for mean, (low, high) in zip(means, reversed(intervals), strict=True)]
    if all(outside):
        better = "greedy" if means[0] > means[1] else "sampled"
        table.caption = f"{better} actions are better: each mean is outside of the other interval"
    return table, lines


FPS = 30
"""Default frames per second of videos."""


class FrameSource(Protocol):
    """Animation of an environment, returned by its method `film()` if it has one."""

    def draw(self, attention: np.ndarray | None = None) -> Iterable[np.ndarray]:
        """Yield frames (height, width, 3) uint8 of the last reset or step.

        `attention` (N, N): attention weight of the row's agent on the column's agent, or None to draw none.
        """
        ...


class Viewer:
    """Output of an environment: a video, or text on the terminal."""

    def __init__(self, name: str, env: Env, view: str | None, out: Path, fps: int) -> None:
        self.name, self.env, self.view, self.out, self.fps = name, env, view, out, fps
        film: Any = getattr(env, "film", None)
        self.film: FrameSource | None = film() if film is not None and view != "text" else None
        self.writer: Any = None
        self.drawn = False
        self.video_only: list[str] = []

    def show(self, attention: np.ndarray | None = None) -> None:
        """Show the last reset or step."""
        if self.film is not None:
            for picture in self.film.draw(attention):
                self.add_frame(picture)
            return
        with named_errors(self.name):
            shown = self.env.render()
        if isinstance(shown, str):
            self.refuse_view("video", "text", "pictures")
            self.refuse_video_options()
            print(shown)
            self.drawn = True
        elif shown is not None:
            self.refuse_view("text", "pictures", "text")
            self.add_frame(shown)

    def refuse_view(self, view: str, drawn: str, absent: str) -> None:
        """Raise ConfigError if `view` was requested, which the environment does not draw."""
        if self.view == view:
            raise ConfigError(f"{self.name} draws {drawn}, not {absent}; leave out --view {view}")

    def refuse_video_options(self) -> None:
        """Raise ConfigError if a video option was given although text is shown."""
        if self.video_only:
            raise ConfigError(f"{self.name} is shown as text, so {self.video_only[0]} has no effect; leave it out")

    def add_frame(self, picture: np.ndarray) -> None:
        """Append a frame to the video."""
        self.writer = self.writer or open_video(self.out, self.fps)
        self.writer.append_data(picture)
        self.drawn = True

    def show_end(self) -> None:
        """Print the last moment of an episode as text if only frames of it were shown."""
        if self.film is not None and isinstance(text := self.env.render(), str):
            print(text)

    def close(self) -> None:
        """Finish the video."""
        if self.writer is not None:
            self.writer.close()


def show(parsed: Any) -> None:
    """Run `marl play`: print a transcript, write a video into the run's folder, or print text."""
    subject = load_agent(parsed)
    with named_errors(subject.task.name):
        env = EnvFactory(subject.task.name, drawing_options(subject.task))()
    try:
        policy = policy_for(subject, env.spec)
        if parsed.view in (None, "transcript") and policy.has_transcript:
            print_transcript(subject, policy, parsed)
        else:
            show_frames(subject, policy, env, parsed)
    finally:
        close_env(env, subject.task.name)


def show_frames(subject: LoadedAgent, policy: Policy, env: Env, parsed: Any) -> None:
    """Show episodes as a video or as the text that the environment renders."""
    name = subject.task.name
    if parsed.view == "transcript":
        raise ConfigError(f"agent {subject.config.agent!r} has no transcript; leave out --view transcript")
    out = parsed.out or (subject.folder or Path()) / "play.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"out={str(out)!r} is not a video file; give a name that ends in .mp4 or .gif")
    interrupt = None
    with whole_files(out) as (beside,):
        viewer = Viewer(name, env, parsed.view, beside, parsed.fps or FPS)
        if parsed.attention:
            check_attention(subject, policy, viewer)
        viewer.video_only = [f"--{option}" for option in ("out", "fps") if getattr(parsed, option) is not None]
        if parsed.view == "text":
            viewer.refuse_video_options()
        try:
            for seed in paired_seeds(parsed.episodes, "test"):
                play_episode(
                    env,
                    policy,
                    viewer,
                    seed,
                    subject.greedy(parsed),
                    max_steps=parsed.stop_after,
                    attention=parsed.attention,
                )
        except KeyboardInterrupt as error:
            interrupt = error  # the video up to here is kept
        finally:
            viewer.close()
    if viewer.writer is not None:
        print(f"wrote {out}")
    if interrupt is not None:
        raise interrupt
    if not viewer.drawn:
        raise ConfigError(f"{name} draws nothing: its `render` returns None; implement it, or leave out `marl play`")


def print_transcript(subject: LoadedAgent, policy: Any, parsed: Any) -> None:
    """Print episodes as transcripts, and write an image of the first one's advantages into the run's folder."""
    config = subject.config
    out = parsed.out or (subject.folder or Path()) / "play.png"
    if parsed.fps is not None:
        raise ConfigError("a transcript has no frames, so --fps has no effect; leave it out")
    if out.suffix != ".png":
        raise ConfigError(
            f"out={str(out)!r} is not a .png file; give a name that ends in .png for the image of advantages"
        )
    env = make_vector(subject.task.name, subject.task.options, 1)
    console = Console()
    try:
        for number, seed in enumerate(paired_seeds(parsed.episodes, "test")):
            episode = record_transcript(
                policy,
                env,
                seed,
                config.links(),
                subject.value_norm,
                deterministic=subject.greedy(parsed),
                max_steps=parsed.stop_after,
            )
            console.print(Markdown(policy.transcript(episode)))
            total = sum(float(step.reward.mean()) for step in episode)
            stopped = "; stopped by --stop-after" if len(episode) == parsed.stop_after else ""
            console.print(f"return {total:.6g} in {len(episode)} steps{stopped}")
            if number == 0:
                save_picture(out, policy.picture(episode))
    finally:
        env.close()


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write an image as PNG."""
    with whole_files(path) as (beside,):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(beside)
    print(f"wrote {path}")


def check_attention(subject: LoadedAgent, policy: Policy, viewer: Viewer) -> None:
    """Raise ConfigError unless attention can be drawn."""
    if not policy.has_attention:
        raise ConfigError(
            f"agent {subject.config.agent!r} has no attention to draw; leave out --attention, or play a run of mat"
        )
    if viewer.view == "text":
        raise ConfigError("attention is drawn in pictures only; leave out --attention or --view text")
    if viewer.film is None:
        raise ConfigError(f"{subject.task.name} does not draw attention; leave out --attention")


def drawing_options(task: EnvFactory) -> dict[str, Any]:
    """Return the environment's options, with a render mode for Gymnasium and PettingZoo."""
    chosen = task.options
    if task.name.partition(":")[0] in ("gymnasium", "pettingzoo"):
        chosen["kwargs"] = {"render_mode": "rgb_array", **chosen["kwargs"]}
    return chosen


class ShownEnv:
    """One environment as a batch of one, for `play_episodes`. A `Viewer` shows the beginning of every episode.

    Unlike a `VectorEnv` of training, it does not reset at the end of an episode, so that the last moment can be shown.
    """

    num_envs = 1

    def __init__(self, env: Env, viewer: Viewer) -> None:
        self.env, self.viewer, self.spec = env, viewer, env.spec

    def reset(self, seeds: list[int]) -> Obs:
        """Start an episode and show its first frame."""
        with named_errors(self.spec.name):
            obs = self.env.reset(seeds[0])
        self.viewer.show()
        return batch_of_one(obs)

    def step(self, action: np.ndarray) -> VectorStep:
        """Act with (1, N) or (1, N, A)."""
        with named_errors(self.spec.name):
            step = self.env.step(action[0])
        ended = np.array([step.terminated]), np.array([step.truncated])
        return VectorStep(batch_of_one(step.obs), np.asarray(step.reward)[None], *ended)


def play_episode(
    env: Env, policy: Any, viewer: Viewer, seed: int, deterministic: bool, *, max_steps: int, attention: bool = False
) -> None:
    """Show every step of one episode, and print its return."""
    total, length, end = 0.0, 0, "stopped by --stop-after"
    shown: Any = ShownEnv(env, viewer)
    steps = play_episodes(
        policy, shown, [seed], max_steps, deterministic=deterministic, generator_seed=seed, copy_obs=attention
    )
    for played in steps:
        step, nodes = played.step, played.decision.nodes
        total, length = total + float(step.reward.mean()), length + 1
        with torch.inference_mode():
            viewer.show(policy.attention(played.inputs, nodes)[0].cpu().numpy() if attention else None)
        if not played.cut[0] and played.ended[0]:
            end = "terminated" if step.terminated[0] else "reached the time limit"
    viewer.show_end()
    print(f"return {total:.6g} in {length} steps; {end}")


def open_video(path: Path, fps: int) -> Any:
    """Return a writer of frames for the file's suffix. Raises MissingDependencyError without imageio."""
    try:
        if path.suffix == ".mp4":
            importlib.import_module("imageio_ffmpeg")  # without it imageio reports only an unknown format
        import imageio.v2 as imageio
    except ImportError as error:
        raise MissingDependencyError(
            "videos need imageio and imageio-ffmpeg; install with: pip install 'seqmarl[video]'"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        return imageio.get_writer(path, duration=1000 / fps, loop=0)
    return imageio.get_writer(path, fps=fps, quality=8, macro_block_size=1)
