"""Installations at SC2PATH, and the errors if something is missing."""

import platform

import pytest

pytest.importorskip("pysc2")

from marl.envs.sc2.install import BINARIES, find_install
from marl.envs.smac import SmacOptions
from marl.errors import ConfigError, MissingDependencyError

HINT = "put it there"


def build(folder, *builds):
    """Write folders that look like installed versions of the game. No file of them runs."""
    for number in builds:
        binary = folder / "Versions" / f"Base{number}" / BINARIES.get(platform.system(), "SC2_x64")
        binary.parent.mkdir(parents=True)
        binary.write_text("#!/bin/sh\n")
        binary.chmod(0o755)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    return tmp_path


def test_the_newest_version_is_taken_and_another_by_name(root):
    build(root, 69232, 75689)
    newest = find_install()
    assert (newest.build, newest.root) == (75689, root)
    assert newest.binary == root / "Versions" / "Base75689" / newest.binary.name
    assert newest.config.version.data_version is None
    named = find_install("4.6.2")
    assert named.build == 69232
    assert named.binary.parent.name == "Base69232"
    assert named.config.version.data_version == "B3E14058F1083913B80C20993AC965DB"
    assert find_install("4.10").build == find_install("4.10.0").build == 75689


def test_a_version_newer_than_pysc2_knows_is_taken(root):
    build(root, 75689, 99999)
    assert find_install().build == 99999


def test_the_path_may_begin_with_the_home(root, monkeypatch):
    build(root, 75689)
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("SC2PATH", f"~/{root.name}")
    assert find_install().root == root


def test_a_version_that_is_not_there_is_told_beside_those_that_are(root):
    build(root, 75689)
    with pytest.raises(ConfigError, match=r"game_version='4.6.2' \(Base69232\), but .* has Base75689 \(4.10.0\)"):
        find_install("4.6.2")
    with pytest.raises(ConfigError, match=r"game_version='4.42', which pysc2 does not know; .* has Base75689"):
        find_install("4.42")


def test_versions_without_an_api_are_refused(root):
    build(root, 52910, 75689)
    with pytest.raises(ConfigError, match=r"game_version='3.13'; versions before 3.16.1"):
        find_install("3.13")


def missing(match):
    return pytest.raises(MissingDependencyError, match=match)


def test_what_is_missing_is_named_with_where_to_get_it(root, monkeypatch):
    with missing(r"no StarCraft II at SC2PATH, which is .*: it has no folder Versions/BaseNNNNN.*s2client-proto"):
        find_install()
    (root / "Versions" / "Base12x").mkdir(parents=True)
    with missing("it has no folder Versions/BaseNNNNN"):
        find_install()
    monkeypatch.setenv("SC2PATH", str(root / "nowhere"))
    with missing(r"SC2PATH, which is '.*nowhere': no such folder.*4.6.2.*AI and Machine Learning License"):
        find_install()
    monkeypatch.setenv("SC2PATH", "")
    with missing("SC2PATH is set, but empty; name the folder of StarCraft II, or unset it"):
        find_install()
    (root / "file").write_text("")
    monkeypatch.setenv("SC2PATH", str(root / "file"))
    with missing("a file, not a folder"):
        find_install()


@pytest.mark.skipif(platform.system() != "Linux", reason="where pysc2 looks elsewhere may hold the game")
def test_without_sc2path_the_place_where_it_was_looked_for_is_named(root, monkeypatch):
    monkeypatch.delenv("SC2PATH")
    monkeypatch.setenv("HOME", str(root))
    with missing(rf"was found: SC2PATH is not set, and there is no {root}/StarCraftII/Versions\..*set SC2PATH"):
        find_install()
    build(root / "StarCraftII", 75689)
    assert find_install().root == root / "StarCraftII"


def test_odd_folders_and_broken_executables(root):
    build(root, 75689)
    (root / "Versions" / "Base12x").mkdir()
    with missing("no installation of StarCraft II was found: .*12x"):
        find_install()
    (root / "Versions" / "Base12x").rmdir()
    binary = find_install().binary
    binary.chmod(0o644)
    with missing("is not executable; chmod"):
        find_install()
    binary.unlink()
    with missing(f"no executable at {binary}"):
        find_install()


def test_maps(root):
    install = find_install() if build(root, 75689) else None
    with missing(rf"no map at {root}/Maps/SMAC_Maps/3m.SC2Map \(No such file or directory\); {HINT}"):
        install.read_map("SMAC_Maps/3m.SC2Map", HINT)
    file = root / "Maps" / "SMAC_Maps" / "3m.SC2Map"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    with missing(f"is empty; {HINT}"):
        install.read_map("SMAC_Maps/3m.SC2Map", HINT)
    file.write_bytes(b"\x00map")
    assert install.read_map("SMAC_Maps/3m.SC2Map", HINT) == b"\x00map"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "sc3"}, "backend='sc3'; give 'embedded' or 'sc2'"),
        ({"backend": "sc2", "difficulty": "B"}, "difficulty='B'; give '1' or .* or 'A'"),
        ({"backend": "sc2", "creep_decay": True}, "creep_decay=True, which has no effect with backend=sc2"),
        ({"difficulty": "3"}, "difficulty='3', which has no effect with backend=embedded; .* choose backend=sc2"),
        ({"game_version": "4.10"}, "game_version='4.10', which has no effect with backend=embedded"),
        ({"replay_dir": "here"}, "replay_dir='here', which has no effect with backend=embedded"),
    ],
)
def test_options_that_the_backend_does_not_read_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        SmacOptions(**options)
