"""Blizzard's message classes under any protobuf, and the parts of pysc2 that a client needs.

The generated modules of `s2clientprotocol` build their descriptors in a way that protobuf 4 and later refuse, unless
protobuf is told to be slow. Each module holds the serialized description of its file too; `load` reads that, and has
protobuf build the same module from it.
"""

import ast
import importlib
import importlib.util
import sys
import threading
import types
from pathlib import Path

from marl.errors import MissingDependencyError

INSTALL = "pip install 'seqmarl[sc2]'"
"""The line that installs what this package needs."""

FILES = ("common", "data", "error", "raw", "score", "spatial", "ui", "debug", "query", "sc2api")
"""Files of the protocol. Each comes after its imports."""

_PACKAGE = "s2clientprotocol"
_loaded = threading.Event()
_lock = threading.RLock()


def load() -> None:
    """Make `s2clientprotocol.*_pb2` and pysc2's `run_configs` and `lib` importable. Cheap after the first call.

    Raises MissingDependencyError where pysc2, s2clientprotocol or protobuf is absent or cannot be used.
    """
    with _lock:
        if _loaded.is_set():
            return
        for package in ("google.protobuf", _PACKAGE, "pysc2", "websocket", "absl"):
            if not _present(package):
                raise MissingDependencyError(f"StarCraft II needs the package {package!r}; install with: {INSTALL}")
        try:
            importlib.import_module(f"{_PACKAGE}.sc2api_pb2")
        except Exception:  # TypeError from protobuf as a rule; what else it may be is its own affair
            build_modules()
        _mark_flags_parsed()
        _loaded.set()


def build_modules() -> None:
    """Build every message module from its serialized description, in place of the generated modules.

    Raises MissingDependencyError, naming the module, where a file holds no description or one that protobuf refuses.
    """
    for name in FILES:
        module_name = f"{_PACKAGE}.{name}_pb2"
        if module_name in sys.modules:
            continue
        spec = importlib.util.find_spec(module_name)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(f"{module_name} is absent; install with: {INSTALL}")
        path = Path(spec.origin)
        module = _build(module_name, path, read_description(path))
        module.__spec__ = spec
        sys.modules[module_name] = module
        setattr(sys.modules[_PACKAGE], f"{name}_pb2", module)


def read_description(path: Path) -> bytes:
    """Return the serialized FileDescriptorProto of a generated module. The module is parsed, not run."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise MissingDependencyError(_damaged(path, str(error))) from error
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (description := _argument(call)):
            return description
    raise MissingDependencyError(_damaged(path, "it holds no serialized description"))


def _argument(call: ast.Call) -> bytes | None:
    """Return the argument with the serialized file: `serialized_pb` in older modules, the first one in newer ones."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "serialized_pb"]
    if isinstance(call.func, ast.Attribute) and call.func.attr == "AddSerializedFile":
        given += call.args
    return _literal(given[0]) if given else None


def _literal(node: ast.expr) -> bytes | None:
    """Return the bytes of `b"..."`, or of `_b("...")`, which encodes as Latin-1."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        node = node.args[0]
    if not isinstance(node, ast.Constant):
        return None
    if isinstance(node.value, str):
        return node.value.encode("latin-1", "ignore")
    return node.value if isinstance(node.value, bytes) else None


def _build(module_name: str, path: Path, description: bytes) -> types.ModuleType:
    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    module = types.ModuleType(module_name)
    module.__file__ = str(path)
    module.__package__ = _PACKAGE
    try:
        descriptor = descriptor_pool.Default().AddSerializedFile(description)
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module_name, module.__dict__)
    except Exception as error:  # which one depends on the protobuf
        raise MissingDependencyError(_damaged(path, f"protobuf refuses its description: {error}")) from error
    module.__dict__["DESCRIPTOR"] = descriptor
    return module


def _damaged(path: Path, why: str) -> str:
    return f"{path} cannot be used ({why}); repair it with: pip install --force-reinstall --no-deps {_PACKAGE}"


def _present(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent is absent
        return False


def _mark_flags_parsed() -> None:
    """Mark absl's flags as parsed. pysc2 reads them, and absl raises before the command line is parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
