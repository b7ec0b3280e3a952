"""Token-level PPO of a language model written the way the released codes work: what `marl bench` measures ours against.

Written from a description of those codes: every candidate is a whole sequence of its own, right-padded beside the
others; each forward gives logits of the full vocabulary at all positions, in float32; text is tokenized anew in acting
and in learning; a step is acted on by four forwards (candidates, values, reference, policy), and a pass of an update
runs three for each row (values, reference, policy), whatever repeats.

Shape legend: E environments, K sequences, S positions, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 16
"""Sequences of one forward."""


class ReferenceLanguageAgent:
    """Acts with the weights of `policy`, a TokenPolicy with a critic, and computes its gradients."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.backbone = policy, policy.backbone
        self.random = np.random.default_rng(0)

    def forward(self, texts: Sequence[tuple[str, str]], reference: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """For prompts with actions: log-probabilities (K, S) of the actions' tokens, where they are, and features."""
        tokenizer = self.backbone.tokenizer
        pairs = [(tokenizer.prompt(prompt), tokenizer.action(action)) for prompt, action in texts]
        longest = max(len(prompt) + len(action) for prompt, action in pairs)
        ids = torch.full((len(pairs), longest), tokenizer.pad)
        there = torch.zeros(len(pairs), longest, dtype=torch.bool)
        mask = torch.zeros(len(pairs), longest, dtype=torch.bool)
        for k, (prompt, action) in enumerate(pairs):
            length = len(prompt) + len(action)
            ids[k, :length] = torch.tensor(prompt + action)
            there[k, :length] = True
            mask[k, len(prompt) - 1 : length - 1] = True
        with self.backbone._adapters_off() if reference else nullcontext():
            return self._forward(self.backbone.model, ids, there, mask)

    def _forward(self, model: Any, ids: Tensor, there: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = model(input_ids=ids, attention_mask=there.long(), use_cache=False, output_hidden_states=True)
        log_probs = out.logits.float().log_softmax(-1)
        following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        taken = log_probs.gather(-1, following.unsqueeze(-1)).squeeze(-1)
        return taken.masked_fill(~mask, 0.0), mask, out.hidden_states[-1].float()

    @torch.no_grad()
    def act(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> tuple[list[str], int]:
        """An action for each environment, drawn by its score a word, and how many tokens they have together."""
        texts = [(prompt, action) for prompt, each in zip(prompts, candidates, strict=True) for action in each]
        scores = torch.cat([self.forward(texts[i : i + MOST])[0].sum(-1) for i in range(0, len(texts), MOST)])
        chosen: list[str] = []
        for each, mine in zip(candidates, scores.split([len(each) for each in candidates]), strict=True):
            words = torch.tensor([len(action.split()) for action in each])
            share = (mine / words).softmax(-1).double().numpy()
            chosen.append(str(self.random.choice(each, p=share / share.sum())))
        said = list(zip(prompts, chosen, strict=True))
        _, mask, features = self.forward(said, reference=True)
        self.policy.critic(features)
        self.forward(said, reference=True)
        self.forward(said)
        return chosen, int(mask.sum())

    def update(self, rows: Sequence[tuple[str, str]]) -> int:
        """Gradients of the clipped surrogate and of the value loss over all rows; returns how many tokens they have."""
        total = 0
        for start in range(0, len(rows), MOST):
            part = rows[start : start + MOST]
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
