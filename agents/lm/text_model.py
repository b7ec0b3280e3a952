"""A frozen pretrained model that writes texts, such as the summaries of an environment."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from marl.agents.lm.loading import frozen_dtype, require_extra
from marl.agents.lm.pretrained import open_pretrained
from marl.agents.lm.tokenizer import PretrainedTokenizer, fit_prompt
from marl.errors import ConfigError


class TextWriter:
    """Greedy answers of a pretrained model, in bf16 if the hardware computes in it.

    On a CPU, prompts are answered one by one, so that an answer does not depend on the others. On a GPU they are one
    batch, whose rounding can change an answer.
    """

    def __init__(self, name: str) -> None:
        require_extra()
        model, tokenizer = open_pretrained(name, frozen_dtype("auto"))
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
        self.tokenizer = PretrainedTokenizer(tokenizer, name, "auto", "", ends)
        self.model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
        self.context = int(model.config.get_text_config().max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Return an answer of at most `max_tokens` tokens to each prompt. Long prompts are cut from the left."""
        room = self.context - max_tokens
        if room < 1:
            raise ConfigError(
                f"max_tokens={max_tokens} does not fit the model's context of {self.context} tokens; give fewer"
            )
        texts = list(dict.fromkeys(prompts))
        rows = [fit_prompt(self.tokenizer, text, room, "cut")[0] for text in texts]
        batches = [rows] if self.model.device.type == "cuda" else [[row] for row in rows]
        answers = [answer for batch in batches for answer in self._answer(batch, max_tokens)]
        written = dict(zip(texts, answers, strict=True))
        return [written[prompt] for prompt in prompts]

    def _answer(self, rows: Sequence[tuple[int, ...]], max_tokens: int) -> list[str]:
        """Return the answers to prompts (ids), padded on the left to one batch."""
        longest, pad = max(map(len, rows)), self.tokenizer.pad
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=list(self.tokenizer.ends),
        )
        return [self.tokenizer.decode(row) for row in out[:, longest:].tolist()]


@lru_cache(maxsize=2)
def load_writer(name: str) -> TextWriter:
    """Return the writer of a model, opened once in a process. Raises ConfigError if there is no such model."""
    if name == "tiny":
        raise ConfigError("text model 'tiny' has random weights; give smollm2, a model's folder or a .gguf file")
    return TextWriter(name)
