"""The `marl` command, run in this process."""

import sys

from marl.experiments import cli


def call(monkeypatch, capsys, *args: str) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of `marl ARGS`."""
    monkeypatch.setattr(sys, "argv", ["marl", *args])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    return code, *capsys.readouterr()
