"""Installations of StarCraft II: location, versions, maps."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl.envs.sc2.protos import load
from marl.errors import ConfigError, MissingDependencyError

BINARIES = {"Windows": "SC2_x64.exe", "Darwin": "SC2.app/Contents/MacOS/SC2"}
"""The executable in a version's folder; SC2_x64 on every other system."""

OLDEST = 55958
"""First build with an API (3.16.1)."""

GET_GAME = (
    "StarCraft II cannot be shipped with this package. On Linux, download 4.10 (Base75689), or 4.6.2 (Base69232) for "
    "comparisons with SMAC's paper, from https://github.com/Blizzard/s2client-proto#linux-packages under Blizzard's AI "
    "and Machine Learning License, unzip it, and set SC2PATH to its folder StarCraftII. On Windows and macOS, install "
    "the game itself. Or leave the game out with backend=embedded"
)


@dataclass(frozen=True)
class Install:
    """One version of an installed game. `config` is pysc2's, `binary` the executable."""

    config: Any
    binary: Path

    @property
    def root(self) -> Path:
        """Folder of the installation."""
        return Path(self.config.data_dir)

    @property
    def build(self) -> int:
        """Build number, as in the folder `Versions/BaseNNNNN`."""
        return self.config.version.build_version

    def read_map(self, path: str, hint: str) -> bytes:
        """Return the bytes of `Maps/<path>`. Raises MissingDependencyError with `hint`, the source of the map."""
        file = self.root / "Maps" / path
        try:
            data = file.read_bytes()
        except OSError as error:
            raise MissingDependencyError(f"no map at {file} ({error.strerror}); {hint}") from error
        if not data:
            raise MissingDependencyError(f"the map {file} is empty; {hint}")
        return data


def find_install(game_version: str | None = None) -> Install:
    """Return the game at SC2PATH, or else where pysc2 looks: the given version, or the newest.

    Raises MissingDependencyError if there is no game, ConfigError if the version is missing.
    """
    load()
    from pysc2 import run_configs
    from pysc2.lib import sc_process

    _check_path()
    try:
        config = run_configs.get(version="latest")
    except (OSError, ValueError, sc_process.SC2LaunchError) as error:
        what = str(error)
        if isinstance(error, FileNotFoundError) and "SC2PATH" not in os.environ:
            what = f"SC2PATH is not set, and there is no {error.filename}"
        raise MissingDependencyError(f"no installation of StarCraft II was found: {what}. {GET_GAME}") from error
    builds = _builds(Path(config.data_dir))
    if game_version is not None:
        config.version = _named_version(config, game_version, builds)
    binary = Path(config.data_dir, "Versions", f"Base{config.version.build_version:05d}")
    binary = binary / BINARIES.get(platform.system(), "SC2_x64")
    if not binary.is_file():
        raise MissingDependencyError(f"StarCraft II has no executable at {binary}; unpack the game again. {GET_GAME}")
    if not os.access(binary, os.X_OK):
        raise MissingDependencyError(f"StarCraft II cannot be started: {binary} is not executable; chmod +x it")
    return Install(config, binary)


def _check_path() -> None:
    root = os.environ.get("SC2PATH")
    if root is None:
        return
    if not root:
        raise MissingDependencyError(
            f"SC2PATH is set, but empty; name the folder of StarCraft II, or unset it. {GET_GAME}"
        )
    if not Path(root).expanduser().is_dir():
        what = "a file, not a folder" if Path(root).expanduser().exists() else "no such folder"
        raise MissingDependencyError(f"no StarCraft II at SC2PATH, which is {root!r}: {what}. {GET_GAME}")
    if not _builds(Path(root).expanduser()):
        raise MissingDependencyError(
            f"no StarCraft II at SC2PATH, which is {root!r}: it has no folder Versions/BaseNNNNN. {GET_GAME}"
        )


def _builds(root: Path) -> list[int]:
    names = [folder.name.removeprefix("Base") for folder in root.glob("Versions/Base*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _named_version(config: Any, game_version: str, builds: list[int]) -> Any:
    """Return pysc2's entry for a version such as 4.10 or 4.6.2."""
    from pysc2.run_configs.lib import VERSIONS

    name = f"{game_version}.0" if game_version.count(".") == 1 else game_version
    installed = ", ".join(_titles(builds, VERSIONS))
    if name not in VERSIONS:
        raise ConfigError(
            f"game_version={game_version!r}, which pysc2 does not know; {config.data_dir} has {installed}. "
            "Name one of these, or leave game_version out for the newest"
        )
    version = VERSIONS[name]
    if version.build_version not in builds:
        raise ConfigError(
            f"game_version={game_version!r} (Base{version.build_version}), but {config.data_dir} has {installed}. "
            f"Install that version there, name another one, or leave game_version out for the newest. {GET_GAME}"
        )
    if version.build_version < OLDEST:
        raise ConfigError(f"game_version={game_version!r}; versions before 3.16.1 cannot be driven by programs")
    return version


def _titles(builds: list[int], versions: dict[str, Any]) -> list[str]:
    titles = []
    for build in builds:
        names = "/".join(name for name, version in versions.items() if version.build_version == build)
        titles.append(f"Base{build} ({names})" if names else f"Base{build}")
    return titles
