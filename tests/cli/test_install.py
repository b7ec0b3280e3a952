"""The wheel, installed beside a project that has folders of the same names as ours, trains, evaluates and loads."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROJECT = {
    "envs/__init__.py": "OURS = 'a folder of the project'\n",
    "agents/__init__.py": "OURS = 'a folder of the project'\n",
    "experiments/__init__.py": "raise ImportError('the suite imported a folder of the project')\n",
    "use.py": """
import sys
from pathlib import Path
import agents, envs
import marl
assert envs.OURS == agents.OURS == "a folder of the project"
assert Path(marl.__file__).is_relative_to(sys.prefix), marl.__file__
policy = marl.load_policy("runs/one")
print("loaded", policy.spec.name)
""",
}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Return the output of a command that must succeed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a clean environment that holds the wheel, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Built from a copy of the tracked files, so that no link and no left-over of a build helps.
    for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    run(*pip, "install", "--no-deps", "--target", packages, *folder.glob("seqmarl-*.whl"), cwd=folder)
    # Read as a plain folder: the editable installation of the checkout, a .pth file in it, has no effect.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv/bin/python"


def test_the_wheel_holds_one_package(python: Path) -> None:
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    assert {path.name for path in packages.iterdir() if path.is_dir() and "." not in path.name} == {"marl", "bin"}
    assert (packages / "marl/py.typed").exists()
    assert any((packages / "marl/envs/text_starcraft/data").glob("*.csv"))


def test_the_wheel_works_beside_folders_of_the_same_names(python: Path, tmp_path: Path) -> None:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    marl = (python, "-m", "marl.experiments.cli")
    short = ("--steps", "32", "--num-envs", "4", "--rollout-steps", "8", "--eval-episodes", "2", "--name", "one")
    run(*marl, "train", "toy/climbing", *short, cwd=tmp_path)
    assert "return" in run(*marl, "eval", "runs/one", "--episodes", "2", cwd=tmp_path)
    assert run(python, "use.py", cwd=tmp_path).split() == ["loaded", "toy/climbing"]
