"""Server of the embedded battle engine, for any client of the StarCraft II API.

`python -m marl.envs.smac.sc2.serve install FOLDER` writes a folder that looks like an installation of the game. A
client that finds it in SC2PATH starts `python -m marl.envs.smac.sc2.serve -listen 127.0.0.1 -port 5000` and gets this
engine in place of the game. `FIDELITY.md` lists what the engine models.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from marl import errors
from marl.envs.sc2.server import NOT_SERVED, Handler, Session, listen
from marl.envs.sc2.server_game import Version
from marl.envs.smac.maps import TASKS
from marl.envs.smac.sc2.embedded_game import FLAT_MAP, EmbeddedGame

BUILD = 75689
VERSIONS = {
    69232: Version("4.6.2.69232", "B3E14058F1083913B80C20993AC965DB", 69232),
    75689: Version("4.10.0.75689", "B89B5D6FA7CBF6452E721311BFBC6CB2", 75689),
}
"""Builds for which SMAC's results are published. The server reports one of them."""

MAPS = (*TASKS, FLAT_MAP)

COMMAND = ("-m", "marl.envs.smac.sc2.serve")
"""Arguments with which Python runs in place of the game."""


class SmacLibrary:
    """Maps of SMAC and SMACv2; see `marl.envs.sc2.server_game.Library`."""

    maps = MAPS

    def open(self, name: str, seed: int) -> EmbeddedGame:
        """Return a battle on a map."""
        return EmbeddedGame(name, seed)


def make_install(folder: Path, build: int = BUILD, command: Sequence[str] = COMMAND) -> Path:
    """Write a folder that passes for an installation of the game. Return it; SC2PATH has to name it.

    The executable is a POSIX shell script that runs this Python with `command`. The map files only hold their names:
    the engine knows a map by its name.
    """
    root = Path(errors.__file__).resolve().parents[1]
    run = shlex.join([sys.executable, *command, "-build", str(build)])
    executable = folder / "Versions" / f"Base{build}" / "SC2_x64"
    executable.parent.mkdir(parents=True, exist_ok=True)
    path = f"PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}"
    executable.write_text(f'#!/bin/sh\n# The embedded battle engine, not StarCraft II.\n{path} exec {run} "$@"\n')
    executable.chmod(0o755)
    maps = folder / "Maps" / "SMAC_Maps"
    maps.mkdir(parents=True, exist_ok=True)
    for name in MAPS:
        (maps / f"{name}.SC2Map").write_text(f"This stands for the map {name}, which the embedded battle engine has.\n")
    return folder


def make_session(arguments: argparse.Namespace) -> Session:
    """Return the session of a process with these arguments, with the engine compiled."""
    library = SmacLibrary()
    library.open("3m", 0).step(1)  # compile before anybody waits for an answer
    return Session(library, VERSIONS[arguments.build], Path(arguments.dataDir), Path(arguments.tempDir))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the game's arguments that matter here. Others, such as those of windows, are ignored."""
    parser = argparse.ArgumentParser(
        prog="python -m marl.envs.smac.sc2.serve",
        description="Serve the embedded battle engine. `install FOLDER` makes an installation that starts this.",
        epilog="Not served, and the answer:\n"
        + "\n".join(f"  {what}: {answer}" for what, answer in NOT_SERVED)
        + "\nFIDELITY.md in the folder marl/envs/smac lists how the battles differ from the game's.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,  # its -h would take -headlessNoRender for itself
    )
    parser.add_argument("--help", action="help", help="show this and exit")
    parser.add_argument("-listen", default="127.0.0.1", metavar="HOST")
    parser.add_argument("-port", type=int, required=True)
    parser.add_argument("-dataDir", default=".", metavar="FOLDER", help="of the maps and replays")
    parser.add_argument("-tempDir", default=".", metavar="FOLDER", help="for maps that a client sends")
    parser.add_argument("-build", type=int, default=BUILD, choices=sorted(VERSIONS), help="what to pass for")
    return parser.parse_known_args(arguments)[0]


def run_server(handler: Handler, host: str, port: int) -> int:
    """Serve until a client quits, no client comes, or SIGTERM. Return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    def announce() -> None:
        print(f"embedded battle engine (not StarCraft II) at {host}:{port}", file=sys.stderr, flush=True)

    try:
        listen(handler, host, port, ready=announce)
    except (OSError, OverflowError) as problem:
        print(f"cannot listen at {host}:{port}: {problem}; choose another", file=sys.stderr, flush=True)
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Serve, or write an installation. Return the exit status."""
    if arguments[:1] == ["install"]:
        parser = argparse.ArgumentParser(prog="python -m marl.envs.smac.sc2.serve install")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--build", type=int, default=BUILD, choices=sorted(VERSIONS))
        options = parser.parse_args(arguments[1:])
        try:
            folder = make_install(options.folder, options.build).resolve()
        except OSError as problem:
            print(f"cannot write into {options.folder}: {problem}; name another folder", file=sys.stderr)
            return 1
        print(f"export SC2PATH={shlex.quote(str(folder))}")
        return 0
    parsed = parse_arguments(arguments)
    return run_server(make_session(parsed), parsed.listen, parsed.port)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
