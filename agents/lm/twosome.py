"""TWOSOME (Tan et al. 2024): a policy over candidate actions, scored by the log-probability of their tokens."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from marl.agents.lm.backbone import Backbone
from marl.agents.lm.candidate_trie import FlatTries, Tokens, Trie, pick, segment_logsumexp, segment_sum
from marl.agents.lm.options import LanguageOptions
from marl.agents.lm.output_head import OutputMatrix
from marl.agents.lm.policy import TokenPolicy
from marl.agents.lm.prompt_table import FREE
from marl.agents.lm.token_model import ActionEvaluation, EncodedBatch, Key
from marl.errors import ConfigError
from marl.types import EnvSpec, Inputs, Obs


@dataclass(frozen=True)
class TwosomeOptions(LanguageOptions):
    """Options of a language model that scores whole actions."""

    normalization: Literal["sum", "token", "word"] = "word"
    """Divisor of an action's summed log-probability: 1 (sum), the number of its tokens, or of its words."""


class Twosome(TokenPolicy):
    """One node per action, L = 1: the index of the candidate.

    A candidate's score is the sum of its tokens' log-probabilities under the softmax over the whole vocabulary,
    normalized by its length (section 4.2). The policy is the softmax of the scores at `temperature`. The value belongs
    to the prompt.
    """

    append_end_token = False
    free_sampling = False

    def __init__(self, spec: EnvSpec, options: TwosomeOptions, backbone: Backbone) -> None:
        super().__init__(spec, options, backbone)
        self.normalization, self.slots = options.normalization, 1

    def encode(self, obs: Obs) -> Inputs:
        """Return ids of prompts and candidate sets. Raises ConfigError for free text."""
        inputs = super().encode(obs)
        if bool((inputs["choices"] == FREE).any()):
            raise ConfigError(
                f"{self.spec.name} takes free text; twosome chooses among candidates, which this environment does not "
                "offer. Use another agent, such as poad"
            )
        return inputs

    def evaluate_actions(
        self, batch: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool
    ) -> ActionEvaluation:
        tries = batch.tries.tries
        sizes = np.array([len(trie.paths) for trie in tries])
        owner = torch.from_numpy(np.arange(len(tries)).repeat(sizes)).to(self.device)
        whose = torch.from_numpy(tree).to(self.device)
        row = torch.from_numpy((sizes.cumsum() - sizes)[tree] + candidate).to(self.device)

        def log_policy(output: OutputMatrix, hidden: Tensor) -> Tensor:
            score = self.scores(output, hidden, batch.tries) / self.options.temperature
            return score - segment_logsumexp(score, owner, len(tries))[owner]

        log_prob = log_policy(self.backbone.output, batch.hidden)
        entropy = -segment_sum(log_prob.exp() * log_prob, owner, len(tries))
        reference = None
        if acting and self.options.reference:
            assert batch.frozen is not None
            reference = log_policy(self.backbone.reference_output, batch.frozen)[row, None]
        mask = torch.ones(len(tree), 1, dtype=torch.bool, device=self.device)
        several = torch.from_numpy(sizes[tree] > 1).to(self.device)
        return ActionEvaluation(
            mask,
            several.unsqueeze(-1),
            log_prob[row, None],
            entropy[whose, None],
            self.values(batch)[batch.tries.root[whose], None],
            reference,
        )

    def scores(self, output: OutputMatrix, hidden: Tensor, flat: FlatTries) -> Tensor:
        """Return the normalized score of every candidate of every trie, (C,)."""
        lengths = [len(path) for trie in flat.tries for path in trie.paths]
        edges = np.concatenate(
            [
                np.array(path) + first
                for trie, first in zip(flat.tries, flat.first_edge, strict=True)
                for path in trie.paths
            ]
        )
        edge = torch.from_numpy(edges).to(self.device)
        candidate = torch.from_numpy(np.arange(len(lengths)).repeat(lengths)).to(self.device)
        logit = output.token_logits(pick(hidden, flat.source), flat.token.unsqueeze(-1)).squeeze(-1)
        log_prob = logit - output.moments(hidden)[0][flat.source]
        total = segment_sum(log_prob[edge], candidate, len(lengths))
        if self.normalization == "sum":
            return total
        words = [max(1, len(text.split())) for trie in flat.tries for text in trie.texts]
        return total / total.new_tensor(lengths if self.normalization == "token" else words)

    def token_texts(self, action: list[int], text: str) -> list[str]:  # noqa: ARG002 - the base's
        return [text]

    def action(self, trie: Trie, candidate: int) -> Tokens:  # noqa: ARG002 - the base's
        return (candidate,)

    def find_candidate(self, prompt: int, choices: int, action: list[int], length: int) -> tuple[Key, int]:  # noqa: ARG002
        return (prompt, choices, ()), action[0]
