"""Fingerprint of a pretrained model, because adapters fit only the weights that they were trained on."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from marl import distributed
from marl.errors import CheckpointError, ConfigError

SIZE = 16
"""Bytes of a digest."""
SAMPLE = 4096
"""Values of each weight that are read one by one. Of all values the sum is read."""
PROBE = "Pick up the tomato, go 12 steps north; then  say: \u00e9t\u00e9!\n"


@torch.no_grad()
def fingerprint(model: Any, tokenizer: Any) -> Tensor:
    """Return digests of the weights and of the tokenizer, (2, 16) uint8.

    Weights are rounded to bf16 first, so the precision in memory does not matter.
    """
    return torch.stack([_digest(_weights(model)), _digest(_tokenizer(tokenizer))])


def compare(here: Tensor, there: Tensor, name: str) -> None:
    """Raise CheckpointError if the fingerprints of the model `name` and of a checkpoint differ."""
    if other := _different_parts(here, there):
        raise CheckpointError(
            f"model {name} has another {other} than when this checkpoint was trained, so what it "
            "learned does not fit; put back the model it was trained on, or train from the beginning"
        )


def compare_ranks(here: Tensor, name: str) -> None:
    """Raise ConfigError on every rank if ranks have opened different models under one name.

    Every rank keeps its own frozen weights, so they would compute different log-probabilities.
    """
    first, *rest = distributed.gather(here)
    for rank, there in enumerate(rest, start=1):
        if other := _different_parts(first, there):
            raise ConfigError(
                f"model {name} on rank {rank} has another {other} than on rank 0; give all ranks the same files"
            )


def _different_parts(a: Tensor, b: Tensor) -> str:
    """Return the names of the parts in which two fingerprints differ, or an empty string."""
    pairs = zip(("weights", "tokenizer"), a.tolist(), b.tolist(), strict=True)
    return " and other ".join(part for part, one, other in pairs if one != other)


def _digest(parts: Any) -> Tensor:
    digest = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        digest.update(part)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).clone()


def _weights(model: Any) -> Any:
    for name, weight in model.named_parameters():
        bits = weight.detach().flatten().to(torch.bfloat16).view(torch.int16)
        step = max(1, bits.numel() // SAMPLE)
        total = sum(int(part.sum(dtype=torch.int64)) for part in bits.split(1 << 24))
        yield f"{name} {tuple(weight.shape)} {total} ".encode()
        yield bits[::step].contiguous().cpu().numpy().tobytes()


def _tokenizer(tokenizer: Any) -> Any:
    for token, number in sorted(tokenizer.get_vocab().items()):
        yield f"{number} {token}\n".encode(errors="surrogatepass")
    yield repr(tokenizer.encode(PROBE, verbose=False)).encode()
    yield repr((tokenizer.eos_token_id, tokenizer.chat_template)).encode(errors="surrogatepass")
