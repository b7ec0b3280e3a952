"""Text that the output's encoding lacks: every command that shows it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GAME = """
from marl.envs.text import TextEnv, TextStep

def make():
    return TextEnv(
        "café",
        lambda random: 0,
        lambda state: "Où aller, 🙂?",
        lambda state, action, random: TextStep(1, 1.0, ended=True),
        lambda state: ["à gauche → là", "à droite"],
        max_steps=2,
        words=["Où aller, à gauche là droite"],
        characters="éùà→🙂",
    )
"""
COMMANDS = """
import sys
from marl.experiments import cli

for line in sys.stdin.read().splitlines():
    sys.argv = ["marl", *line.split()]
    cli.main()
"""
LINES = """
train cafe:make --agent poad --steps 8 --num-envs 2 --rollout-steps 4 --epochs 1 --critic-hidden 8 --name latte
eval runs/latte --episodes 2 --out rows.jsonl
play runs/latte --view text
play runs/latte --view transcript
""".strip()


def test_text_tasks_are_trained_evaluated_and_played_whatever_the_output_can_say(tmp_path):
    (tmp_path / "cafe.py").write_text(GAME, encoding="utf-8")
    settings = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        input=LINES.encode(),
        capture_output=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode("ascii")
    assert "O\\xf9 aller, \\U0001f642?" in out
    assert "\\u2192" in out
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([json.loads(row) for row in rows]) == 2
