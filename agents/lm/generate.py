"""Generation of free text with a key-value cache."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from marl.agents.lm.backbone import Backbone
from marl.agents.lm.tokenizer import stop_at


@dataclass(frozen=True)
class Generation:
    """Answers to B prompts, on the model's device.

    `tokens` (B, L) int64 and `mask` (B, L) bool are the answers with their end tokens, padded on the right.
    `behavior_log_prob` (B, L) is each token's log-probability under the distribution that sampled it, with temperature
    and `top_p`; 0 for a greedy choice.

    The cache rounds differently from `Backbone.features`: in bf16 a token's log-probability differs by as much as a PPO
    clip allows. So learning takes its old log-probabilities from the features.
    """

    tokens: Tensor
    mask: Tensor
    behavior_log_prob: Tensor

    def ids(self, row: int) -> tuple[int, ...]:
        """Return one answer's ids, its end token included."""
        return tuple(self.tokens[row][self.mask[row]].tolist())


@torch.no_grad()
def generate(
    backbone: Backbone,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_strings: Sequence[str] = (),
    greedy: bool = False,
    generator: Generator | None = None,
) -> Generation:
    """Generate answers of 1 to `max_tokens` tokens to prompts (ids).

    An answer ends with one of the tokenizer's end tokens, or with the token that completes one of the `stop_strings`.
    An end token alone is the empty text. Equal prompts are read once, and an answer that has ended costs nothing more.
    `generator` belongs to the model's device. Raises ValueError if a prompt leaves no room for `max_tokens`.
    """
    longest = max(map(len, prompts))
    if longest + max_tokens > backbone.context:
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of {max_tokens} do not fit a context of {backbone.context}"
        )
    device = backbone.device
    shape = (len(prompts), max_tokens)
    tokens = torch.full(shape, backbone.tokenizer.pad, device=device)
    behavior = torch.zeros(shape, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)

    reader, output = Reader(backbone, prompts), backbone.output.at(temperature)
    rows = torch.arange(len(prompts), device=device)
    ends = torch.tensor(backbone.tokenizer.ends, device=device)
    for slot in range(max_tokens):
        log_probs = torch.log_softmax(output.logits(reader.hidden), -1)
        token, behavior[rows, slot] = _choose(log_probs, top_p, greedy, generator)
        tokens[rows, slot], mask[rows, slot] = token, True
        ended = torch.isin(token, ends)
        if stop_strings:
            ended |= _stopped(backbone, tokens[rows, : slot + 1], stop_strings)
        going = (~ended).nonzero().squeeze(-1)
        rows = rows[going]
        if not len(rows) or slot + 1 == max_tokens:
            break
        reader.read(token[going], going)
    length = int(mask.sum(-1).max())
    return Generation(tokens[:, :length], mask[:, :length], behavior[:, :length])


def _stopped(backbone: Backbone, answers: Tensor, stop_strings: Sequence[str]) -> Tensor:
    """Return (B,) bool: the text of the answer, of `answers` (B, L), holds one of the strings."""
    texts = [backbone.tokenizer.raw(ids) for ids in answers.tolist()]
    return torch.tensor([stop_at(text, stop_strings) >= 0 for text in texts], device=answers.device)


def _choose(log_probs: Tensor, top_p: float, greedy: bool, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Return tokens (B,) sampled from log-probabilities (B, V), and their log-probabilities under the sampler."""
    if greedy:
        token = log_probs.argmax(-1)
        return token, torch.zeros_like(log_probs[:, 0])
    if top_p < 1.0:
        log_probs = nucleus(log_probs, top_p)
    token = torch.multinomial(log_probs.exp(), 1, generator=generator)
    return token.squeeze(-1), log_probs.gather(-1, token).squeeze(-1)


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Return log-probabilities (B, V) of the most probable tokens whose sum reaches `top_p`; -inf elsewhere.

    Holtzman et al. 2020, "The curious case of neural text degeneration", eq. 2.
    """
    ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return torch.log_softmax(log_probs.masked_fill(outside, float("-inf")), -1)


class Reader:
    """Key-value cache of B sequences, and the `hidden` state (B, H) at each one's last token."""

    def __init__(self, backbone: Backbone, prompts: Sequence[tuple[int, ...]]) -> None:
        """Read prompts padded on the left, equal ones once."""
        from transformers import DynamicCache

        unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        longest = max(map(len, unique))
        pad, device = backbone.tokenizer.pad, backbone.device
        self.decoder = backbone.model.get_decoder()
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in unique], device=device)
        lengths = torch.tensor([len(prompt) for prompt in unique], device=device)
        self.seen = torch.arange(longest, device=device) >= longest - lengths.unsqueeze(-1)
        self.position = lengths - 1
        self.cache = DynamicCache(config=self.decoder.config)
        # transformers names the argument `cache` where it used to be `past_key_values`, and will drop the old name.
        takes = inspect.signature(self.decoder.forward).parameters
        self.cache_name = "cache" if "cache" in takes else "past_key_values"
        self._advance(ids, (self.seen.cumsum(-1) - 1).clamp(min=0))
        self._keep(torch.tensor([unique[prompt] for prompt in prompts], device=device))

    def read(self, token: Tensor, rows: Tensor) -> None:
        """Read one token (K,) in each of `rows` (K,), and drop the other sequences."""
        if len(rows) < len(self.hidden):
            self._keep(rows)
        self.position = self.position + 1
        self.seen = torch.cat([self.seen, torch.ones_like(self.seen[:, :1])], -1)
        self._advance(token.unsqueeze(-1), self.position.unsqueeze(-1))

    def _advance(self, ids: Tensor, positions: Tensor) -> None:
        out = self.decoder(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self.seen.long(),
            use_cache=True,
            **{self.cache_name: self.cache},
        )
        self.hidden = out.last_hidden_state[:, -1].to(ids.device)

    def _keep(self, rows: Tensor) -> None:
        self.seen, self.position, self.hidden = self.seen[rows], self.position[rows], self.hidden[rows]
        self.cache.batch_select_indices(rows.cpu())  # whichever devices its layers are on
