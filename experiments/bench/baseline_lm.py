"""Speed baseline of `marl bench`: token-level PPO of a language model, structured like the released codes.

Written from a description of those codes. Every candidate is a separate, right-padded sequence. Each forward pass
computes float32 logits of the full vocabulary at all positions. Text is tokenized again in acting and in learning. A
step takes four forward passes (candidates, values, reference, policy), and an update three for each row (values,
reference, policy), without any reuse.

Shape legend: E environments, K sequences, S positions, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_SEQUENCES = 16
"""Number of sequences of one forward pass."""


class ReferenceLanguageAgent:
    """Act with the weights of `policy`, a TokenPolicy with a critic, and compute its gradients."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.backbone = policy, policy.backbone
        self.random = np.random.default_rng(0)

    def forward(self, texts: Sequence[tuple[str, str]], reference: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities (K, S) and mask (K, S) of the action tokens, and features (K, S, D), of K texts."""
        tokenizer = self.backbone.tokenizer
        pairs = [(tokenizer.prompt(prompt), tokenizer.action(action)) for prompt, action in texts]
        width = max(len(prompt) + len(action) for prompt, action in pairs)
        ids = torch.full((len(pairs), width), tokenizer.pad)
        attention_mask = torch.zeros(len(pairs), width, dtype=torch.bool)
        mask = torch.zeros(len(pairs), width, dtype=torch.bool)
        for k, (prompt, action) in enumerate(pairs):
            length = len(prompt) + len(action)
            ids[k, :length] = torch.tensor(prompt + action)
            attention_mask[k, :length] = True
            mask[k, len(prompt) - 1 : length - 1] = True
        with self.backbone._adapters_off() if reference else nullcontext():
            return self._forward(self.backbone.model, ids, attention_mask, mask)

    def _forward(self, model: Any, ids: Tensor, attention_mask: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = model(input_ids=ids, attention_mask=attention_mask.long(), use_cache=False, output_hidden_states=True)
        log_probs = out.logits.float().log_softmax(-1)
        following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        taken = log_probs.gather(-1, following.unsqueeze(-1)).squeeze(-1)
        return taken.masked_fill(~mask, 0.0), mask, out.hidden_states[-1].float()

    @torch.no_grad()
    def act(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> tuple[list[str], int]:
        """Return an action for each environment, sampled by its score per word, and their number of tokens."""
        texts = [(prompt, action) for prompt, each in zip(prompts, candidates, strict=True) for action in each]
        scores = torch.cat(
            [self.forward(texts[i : i + MAX_SEQUENCES])[0].sum(-1) for i in range(0, len(texts), MAX_SEQUENCES)]
        )
        chosen: list[str] = []
        for each, mine in zip(candidates, scores.split([len(each) for each in candidates]), strict=True):
            words = torch.tensor([len(action.split()) for action in each])
            share = (mine / words).softmax(-1).double().numpy()
            chosen.append(str(self.random.choice(each, p=share / share.sum())))
        taken_texts = list(zip(prompts, chosen, strict=True))
        _, mask, features = self.forward(taken_texts, reference=True)
        self.policy.critic(features)
        self.forward(taken_texts, reference=True)
        self.forward(taken_texts)
        return chosen, int(mask.sum())

    def update(self, rows: Sequence[tuple[str, str]]) -> int:
        """Compute gradients of clipped surrogate and value loss over all rows; return their number of tokens."""
        total = 0
        for start in range(0, len(rows), MAX_SEQUENCES):
            part = rows[start : start + MAX_SEQUENCES]
            with torch.no_grad():
                _, mask, features = self.forward(part, reference=True)
                self.forward(part, reference=True)
            value = self.policy.critic(features).squeeze(-1)
            log_prob, _, _ = self.forward(part)
            ratio = (log_prob - log_prob.detach()).exp()
            surrogate = torch.minimum(ratio, ratio.clamp(0.8, 1.2)).masked_fill(~mask, 0.0).sum()
            (value.square().masked_fill(~mask, 0.0).sum() - surrogate).div(len(rows)).backward()
            total += int(mask.sum())
        self.policy.zero_grad(set_to_none=True)
        return total
