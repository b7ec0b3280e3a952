"""Looking at an agent: evaluation tables, videos, text."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from marl.config import RunConfig, default_config
from marl.errors import ConfigError, MissingDependencyError, NonFiniteError
from marl.evaluate import evaluate, paired_seeds, summarise
from marl.loading import batch_of_one, load_checkpoint, make_policy
from marl.protocols import Env, Policy
from marl.registry import AGENTS, EnvFactory
from marl.run import options, read_config
from marl.vector import make_vector


@dataclasses.dataclass(frozen=True)
class Subject:
    """Who plays what: `folder` is the run's, or None for an untrained agent."""

    config: RunConfig
    policy: Policy | None
    title: str
    folder: Path | None


def resolve(subject: str, agent: str, which: str) -> Subject:
    """The run, checkpoint or environment that `subject` names."""
    path = Path(subject)
    if path.is_dir():
        checkpoint_only = not (path / "config.yaml").exists() and (path / "manifest.json").exists()
        folder = path.parent.parent if checkpoint_only else path
        config = read_config(folder)
        root = path if checkpoint_only else path / "checkpoints"
        checkpoint = load_checkpoint(root, int(which) if which.isdigit() else which)
        title = f"{config.agent} on {config.env} after {checkpoint.step} steps ({checkpoint.path.name})"
        return Subject(config, make_policy(checkpoint), title, folder)
    if path.parts[:1] == ("runs",) or path.is_absolute():
        raise ConfigError(f"there is no run {subject!r}; `ls runs` shows the runs")
    if AGENTS.get(agent).trains:
        raise ConfigError(
            f"{subject!r} is no run's folder, and agent {agent!r} must be trained first; give a folder of runs/, "
            "or an environment with --agent random"
        )
    return Subject(default_config(subject, agent), None, f"{agent} on {subject}", None)


def policy_for(subject: Subject, spec: Any) -> Policy:
    if subject.policy is not None:
        return subject.policy
    return AGENTS.get(subject.config.agent).make(spec, subject.config.agent_options)


def report(parsed: Any) -> None:
    """`marl eval`: the mean return with its interval, and what the episodes ended with."""
    if parsed.episodes < 1 or parsed.num_envs < 1:
        raise ConfigError(f"episodes is {parsed.episodes} and num_envs {parsed.num_envs}; give 1 or more of each")
    subject = resolve(parsed.subject, parsed.agent, parsed.which)
    config = subject.config
    if parsed.out is not None and not parsed.out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {parsed.out}: its folder does not exist")
    env = make_vector(config.env, options(config), min(parsed.episodes, parsed.num_envs))
    try:
        rows = evaluate(policy_for(subject, env.spec), env, paired_seeds(parsed.episodes), not parsed.stochastic)
    finally:
        env.close()
    values = summarise(rows)
    if "eval/return" not in values:
        raise NonFiniteError(f"{subject.title}: the return of every episode is NaN or infinite")
    table = Table("", "mean", "95 % interval", "lowest", "highest", title=subject.title)
    returns, lengths = [row.returns for row in rows], [row.length for row in rows]
    low, high = values["eval/return_low"], values["eval/return_high"]
    interval = f"{low:.4g} to {high:.4g}" if np.isfinite(low) else "-"
    table.add_row("return", f"{values['eval/return']:.6g}", interval, f"{min(returns):.4g}", f"{max(returns):.4g}")
    table.add_row("length", f"{values['eval/length']:.6g}", "", str(min(lengths)), str(max(lengths)))
    if "eval/success" in values:
        table.add_row("success", f"{values['eval/success']:.1%}", "", "", "")
    Console().print(table, f"{len(rows)} episodes, {'sampled' if parsed.stochastic else 'greedy'} actions")
    if parsed.out is not None:
        lines = [json.dumps(dataclasses.asdict(row)) for row in rows]
        parsed.out.write_text("\n".join(lines) + "\n")


def show(parsed: Any) -> None:
    """`marl play`: a video beside the run, or text on the terminal."""
    subject = resolve(parsed.subject, parsed.agent, parsed.which)
    env = EnvFactory(subject.config.env, drawing_options(subject.config))()
    out = parsed.out or (subject.folder or Path()) / "play.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"cannot write {out}: the file must end in .mp4 or .gif")
    policy = policy_for(subject, env.spec)
    writer: Any = None
    drawn = False
    try:
        for seed in paired_seeds(parsed.episodes):
            for picture in episode(env, policy, seed, parsed.max_steps, not parsed.stochastic):
                drawn = drawn or picture is not None
                if isinstance(picture, str):
                    print(picture)
                elif picture is not None:
                    writer = writer or open_video(out, parsed.fps)
                    writer.append_data(picture)
    finally:
        if writer is not None:
            writer.close()
            print(f"wrote {out}")
        env.close()
    if not drawn:
        raise ConfigError(f"{subject.config.env} draws nothing: its `render` returns None")


def drawing_options(config: RunConfig) -> dict[str, Any]:
    """The environment's options, asking Gymnasium and PettingZoo for pictures."""
    chosen = options(config)
    if config.env.partition(":")[0] in ("gymnasium", "pettingzoo"):
        chosen["kwargs"] = {"render_mode": "rgb_array", **chosen["kwargs"]}
    return chosen


def episode(
    env: Env, policy: Policy, seed: int, max_steps: int, deterministic: bool
) -> Iterator[np.ndarray | str | None]:
    """What the environment draws at each step of one episode, whose return is printed at its end."""
    generator = torch.Generator().manual_seed(seed)
    obs, total = env.reset(seed), 0.0
    yield env.render()
    for length in range(1, max_steps + 1):
        with torch.inference_mode():
            decision = policy.act(policy.encode(batch_of_one(obs)), generator, deterministic)
        step = env.step(decision.action[0])
        obs, total = step.obs, total + float(step.reward.mean())
        yield env.render()
        if step.terminated or step.truncated:
            end = "terminated" if step.terminated else "reached the time limit"
            print(f"return {total:.6g} in {length} steps; {end}")
            return
    print(f"return {total:.6g} in {max_steps} steps; stopped by --max-steps")


def open_video(path: Path, fps: int) -> Any:
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise MissingDependencyError("videos need imageio; install with: pip install 'seqmarl[mujoco]'") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        return imageio.get_writer(path, duration=1000 / fps, loop=0)
    return imageio.get_writer(path, fps=fps, macro_block_size=1)
