"""Blizzard's messages under the protobuf at hand: the same as protobuf's own reading of them, or a clear error."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("pysc2")
pytest.importorskip("s2clientprotocol")

from marl.envs.sc2 import protos
from marl.errors import MissingDependencyError

ROOT = Path(__file__).parents[2]
FOLDER = Path(find_spec("s2clientprotocol").origin).parent


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh Python, where nothing is loaded and every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


MESSAGE = """
from marl.envs.sc2.protos import load
load()
from s2clientprotocol import common_pb2, sc2api_pb2
request = sc2api_pb2.Request(id=7)
create = request.create_game
create.local_map.map_data = bytes(range(256))
create.player_setup.add(type=sc2api_pb2.Computer, race=common_pb2.Zerg, difficulty=sc2api_pb2.VeryHard)
"""


def test_messages_and_enums_of_every_file_are_there():
    protos.load()
    from s2clientprotocol import common_pb2, error_pb2, sc2api_pb2

    assert {f"s2clientprotocol.{name}_pb2" for name in protos.FILES} <= set(sys.modules)
    assert (common_pb2.Terran, sc2api_pb2.Difficulty.Value("CheatInsane")) == (1, 10)
    assert sc2api_pb2.ResponseCreateGame.Error.Name(sc2api_pb2.ResponseCreateGame.MissingMap) == "MissingMap"
    assert error_pb2.ActionResult.Name(1) == "Success"
    with pytest.raises(ValueError, match="Nothing"):
        common_pb2.Race.Value("Nothing")
    observation = sc2api_pb2.Response()
    unit = observation.observation.observation.raw_data.units.add(tag=2**63, health=0.1, unit_type=48)
    unit.pos.x = 9.25
    again = sc2api_pb2.Response.FromString(observation.SerializeToString())
    assert again == observation
    assert again.observation.observation.raw_data.units[0].tag == 2**63


def test_every_file_is_whole():
    from google.protobuf import descriptor_pb2

    protos.load()
    for name in protos.FILES:
        module = sys.modules[f"s2clientprotocol.{name}_pb2"]
        file = descriptor_pb2.FileDescriptorProto.FromString(protos.read_description(Path(module.__file__)))
        assert file.name == f"s2clientprotocol/{name}.proto"
        assert all(hasattr(module, message.name) for message in file.message_type), name
        assert all(hasattr(module, enum.name) for enum in file.enum_type), name
        assert module.DESCRIPTOR.serialized_pb == file.SerializeToString()


def test_a_second_load_changes_nothing():
    protos.load()
    before = {name: module for name, module in sys.modules.items() if name.startswith("s2clientprotocol")}
    protos.load()
    protos.build_modules()
    assert {name: sys.modules[name] for name in before} == before


def test_the_slow_protobuf_writes_the_same_bytes():
    code = MESSAGE + "import sys; sys.stdout.write(request.SerializeToString(deterministic=True).hex())"
    fast = run(code)
    slow = run(code, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
    assert not fast.returncode, fast.stderr
    assert not slow.returncode, slow.stderr
    assert fast.stdout == slow.stdout != ""


def test_threads_may_load_at_once_and_pysc2_imports_without_warnings():
    code = """
import threading
from marl.envs.sc2.protos import load
failures = []
def work():
    try:
        load()
        from s2clientprotocol import sc2api_pb2
        sc2api_pb2.Request(ping=sc2api_pb2.RequestPing())
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
from pysc2 import maps, run_configs
from pysc2.lib import portspicker, protocol, remote_controller, sc_process
from absl import flags
assert flags.FLAGS.sc2_timeout == 360
print("done")
"""
    done = run(code)
    assert done.stdout == "done\n", done.stderr


def test_flags_that_a_program_has_parsed_stay_as_they_are():
    code = """
from absl import flags
flags.DEFINE_integer("depth", 1, "")
flags.FLAGS(["program", "--depth=4"])
from marl.envs.sc2.protos import load
load()
from pysc2 import run_configs
assert flags.FLAGS.depth == 4
print("done")
"""
    done = run(code)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("package", ["pysc2", "s2clientprotocol", "absl", "websocket"])
def test_an_absent_package_is_named_with_the_line_that_installs_it(package):
    done = run(f"import sys; sys.modules[{package!r}] = None\nfrom marl.envs.sc2.protos import load\nload()")
    assert "MissingDependencyError: StarCraft II needs the package" in done.stderr
    assert repr(package) in done.stderr
    assert "pip install 'seqmarl[sc2]'" in done.stderr


def damage(folder: Path, name: str, text: str | None) -> Path:
    """Copy the package with one file replaced by `text`, or removed."""
    copy = shutil.copytree(FOLDER, folder / "s2clientprotocol", ignore=shutil.ignore_patterns("__pycache__"))
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text)
    return copy / name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def broken(:", "invalid syntax"),
        ("", "it holds no serialized description"),
        ("DESCRIPTOR = None", "it holds no serialized description"),
        ("FileDescriptor(serialized_pb=_b('no descriptor'))", "protobuf refuses its description"),
        ("pool.AddSerializedFile(3)", "it holds no serialized description"),
    ],
)
def test_a_damaged_file_is_named_with_its_repair(tmp_path, text, why):
    path = damage(tmp_path, "raw_pb2.py", text)
    done = run("from marl.envs.sc2.protos import load\nload()", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert f"MissingDependencyError: {path} cannot be used ({why}" in done.stderr
    assert "pip install --force-reinstall --no-deps s2clientprotocol" in done.stderr


def test_a_file_that_is_gone_is_named(tmp_path):
    damage(tmp_path, "score_pb2.py", None)
    done = run("from marl.envs.sc2.protos import load\nload()", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "MissingDependencyError: s2clientprotocol.score_pb2 is absent" in done.stderr


def test_code_of_a_newer_generator_that_refuses_to_run_is_read_too(tmp_path):
    description = protos.read_description(FOLDER / "common_pb2.py")
    text = f"raise RuntimeError('made for another protobuf')\npool.Default().AddSerializedFile({description!r})"
    damage(tmp_path, "common_pb2.py", text)
    code = MESSAGE + "print(common_pb2.Race.Name(request.create_game.player_setup[0].race))"
    done = run(code, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.stdout == "Zerg\n", done.stderr


def test_an_unreadable_file_is_no_bare_os_error(tmp_path):
    with pytest.raises(MissingDependencyError, match=r"raw_pb2.py cannot be used \(.*No such file"):
        protos.read_description(tmp_path / "raw_pb2.py")
