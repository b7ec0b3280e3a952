"""Forward pass of the language agents: features, log-probabilities and values of candidate tries.

A *query* is a prompt and what may be said behind it. Its trie holds the candidate actions, or one sampled free text.

Shape legend: E environments, N agents, L slots (tokens), K actions, P queries of a pass, S states and M edges of their
tries, C candidates, H features.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl.agents.heads import SMALL_GAIN, mlp
from marl.agents.lm.backbone import Backbone
from marl.agents.lm.candidate_trie import (
    FlatTries,
    Tokens,
    Trie,
    build_trie,
    flatten_tries,
    pick,
    segment_logsumexp,
    segment_sum,
)
from marl.agents.lm.feature_norm import DepthNorm
from marl.agents.lm.options import LanguageOptions
from marl.agents.lm.output_head import OutputMatrix
from marl.agents.lm.prompt_table import FREE, PromptTable, Window
from marl.agents.lm.token_tree import Tree, batches
from marl.messages import Message
from marl.oom import MicroBatchBackoff
from marl.policy import Policy
from marl.types import EnvSpec, Inputs, Nodes

Key = tuple[int, int, Tokens]
"""A query: prompt id, candidate set id, and the sampled tokens if the candidate set is FREE."""
CACHE_BYTES = 1 << 28
"""Bytes of features of the frozen model that are kept."""


@dataclass(frozen=True)
class ActionEvaluation:
    """The current policy's view of K actions, (K, L) each. `value` may be (K, 1).

    `mask` and `trained` are `node_mask` and `loss_mask` of Nodes. The optional fields are those of Decision and
    Evaluation.
    """

    mask: Tensor
    trained: Tensor
    log_prob: Tensor
    entropy: Tensor
    value: Tensor
    reference_log_prob: Tensor | None = None
    policy_loss: Tensor | None = None
    node_reward: Tensor | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """P queries laid out for one pass, with features (S, H) of the policy, and of the frozen model if it is read."""

    tries: FlatTries
    hidden: Tensor
    frozen: Tensor | None


def window_of(spec: EnvSpec, options: LanguageOptions) -> Window:
    """Return the earlier turns that prompts of an environment hold."""
    history = options.history
    if history == "auto":
        history = "all" if spec.conversation else "none"
    return Window(
        history,
        options.history_turns if history == "turns" else None,
        options.history_tokens if history == "tokens" else None,
    )


class TokenModel(Policy):
    """Base of the token policies: the forward pass over queries, and the lookup of stored actions."""

    recurrent_dtype = torch.int64

    append_end_token = True
    """A candidate that is a prefix of another ends with an end token."""

    def __init__(self, spec: EnvSpec, options: LanguageOptions, backbone: Backbone) -> None:
        super().__init__(spec, options.max_action_tokens)
        self.options, self.backbone = options, backbone
        self.reads_frozen = options.critic_reads == "frozen" or options.reference
        self.prompt_table = PromptTable(
            backbone.tokenizer,
            backbone.context,
            options.max_action_tokens,
            backbone.tokenizer.end if self.append_end_token else None,
            options.prompt_overflow,
            spec.agents if options.team == "sequential" else (),
            window_of(spec, options),
            spec.conversation,
        )
        self.has_history = self.prompt_table.window.history != "none"
        """Prompts hold earlier turns. The recurrent state is then each agent's context, (N, 1)."""
        weights = backbone.model.get_input_embeddings().weight
        self.merges_prompts = self.has_history and weights.dtype == torch.float32
        """Updates read what prompts share once. In bf16 its rounding would move ratios by as much as a clip allows."""
        self.recurrent_shape = (spec.num_agents, 1) if self.has_history else None
        self.critic = self.make_critic(backbone.feature_size)
        if self.critic is not None:
            self.critic.to(backbone.device)
        frozen = options.critic_reads == "frozen"
        self.critic_scale = DepthNorm(options.max_action_tokens, backbone.feature_size) if frozen else None
        if self.critic_scale is not None:
            self.critic_scale.to(backbone.device)
        self.backoff = MicroBatchBackoff("Set --token-budget to begin with smaller ones")
        self._frozen: OrderedDict[Key, Tensor] = OrderedDict()
        self._frozen_bytes = 0

    def make_critic(self, width: int) -> nn.Module | None:
        """Return the critic on features (S, H), or None."""
        return None if self.options.critic_reads == "none" else mlp(width, self.options.critic_hidden, 1, SMALL_GAIN)

    @property
    def device(self) -> torch.device:
        """Device of the language model."""
        return self.backbone.device

    # Queries and stored actions

    def tree(self, key: Key, trie: Trie) -> Tree:
        """Return what the language model reads of a query. It need not read the last token of an action."""
        token, parent = trie.inner()
        return Tree(self.prompt_table.prompts[key[0]], tuple(token.tolist()), tuple(parent.tolist()))

    def trie(self, key: Key) -> Trie:
        """Return the trie of a query's candidates, or of its sampled free text."""
        _, choices, tokens = key
        if choices != FREE:
            return self.prompt_table.tries[choices]
        sampled = [tokens] if tokens else []
        return build_trie([""] * len(sampled), sampled, None, self.slots, free=True)

    def action(self, trie: Trie, candidate: int) -> Tokens:
        """Return what is stored as the action of a candidate: its tokens."""
        return trie.tokens(candidate)

    def find_candidate(self, prompt: int, choices: int, action: list[int], length: int) -> tuple[Key, int]:
        """Return the query and the candidate of a stored action of `length` tokens."""
        tokens = tuple(action[:length])
        if choices == FREE:
            return (prompt, FREE, tokens), 0
        return (prompt, choices, ()), self.prompt_table.tries[choices].index[tokens]

    def locate_actions(self, inputs: Inputs, nodes: Nodes) -> tuple[np.ndarray, list[tuple[Key, int]]]:
        """Return the agent rows (of E x N) that have nodes, and the query and candidate of each one's action."""
        prompt, choices = self.prompt_ids(inputs, nodes), inputs["choices"].cpu().numpy()
        action, mask = nodes.action.cpu().numpy(), nodes.node_mask.cpu().numpy()
        lengths = mask.sum(-1).ravel()
        flat = action.reshape(len(lengths), -1)
        rows = zip(*(x.tolist() for x in (prompt.ravel(), choices.ravel(), flat, lengths)), strict=True)
        return np.flatnonzero(lengths), [self.find_candidate(*row) for row in rows if row[-1]]

    def read_prompts(self, inputs: Inputs) -> np.ndarray:
        """Return the ids (E, N) of the prompts of observations, in conversations behind their contexts."""
        prompt = inputs["prompt"].cpu().numpy()
        if not (self.has_history or self.spec.conversation):
            return prompt
        context = inputs["recurrent_state"][..., 0].cpu().numpy() if self.has_history else np.zeros_like(prompt)
        pairs = zip(context.ravel().tolist(), prompt.ravel().tolist(), strict=True)
        return np.array([self.prompt_table.prompt_after(*pair) for pair in pairs]).reshape(prompt.shape)

    def next_contexts(self, inputs: Inputs, prompt: np.ndarray, action: np.ndarray, mask: np.ndarray) -> Tensor | None:
        """Return the contexts (E, N, 1) after actions (E, N, L). A dead agent keeps its context."""
        if not self.has_history:
            return None
        context, choices = inputs["recurrent_state"].clone(), inputs["choices"].cpu().numpy()
        for e, n in zip(*np.nonzero(mask.any(-1)), strict=True):
            key, candidate = self.find_candidate(
                int(prompt[e, n]), int(choices[e, n]), action[e, n].tolist(), int(mask[e, n].sum())
            )
            context[e, n, 0] = self.prompt_table.context_id(int(prompt[e, n]), self.trie(key).tokens(candidate))
        return context

    def export_recurrent_state(self, state: Tensor) -> Any:
        """Return the turns of every context: messages and sampled ids."""
        rows = [[self.prompt_table.turns_of(context) for context in row] for row in state[..., 0].tolist()]
        return [
            [[[[asdict(m) for m in turn] for turn in turns], [list(ids) for ids in answers]] for turns, answers in row]
            for row in rows
        ]

    def import_recurrent_state(self, data: Any) -> Tensor:
        """Return the contexts (E, N, 1) with the turns of `export_recurrent_state`."""
        rows = [
            [
                self.prompt_table.context_of(
                    [tuple(Message(**message) for message in turn) for turn in turns],
                    [tuple(int(token) for token in ids) for ids in answers],
                )
                for turns, answers in row
            ]
            for row in data
        ]
        return torch.tensor(rows, device=self.device).unsqueeze(-1)

    def prompt_ids(self, inputs: Inputs, nodes: Nodes) -> np.ndarray:
        """Return the ids (E, N) of the prompts that agents read before they took the actions of `nodes`."""
        prompt, choices = self.read_prompts(inputs), inputs["choices"].cpu().numpy()
        if self.options.team == "sequential":
            action, mask = nodes.action.cpu().numpy(), nodes.node_mask.cpu().numpy()
            for agent in range(1, prompt.shape[1]):
                prompt = self.extended(prompt, choices, action, mask, agent)
        return prompt

    def extended(
        self, prompt: np.ndarray, choices: np.ndarray, action: np.ndarray, mask: np.ndarray, agent: int
    ) -> np.ndarray:
        """Return prompt ids (E, N) in which the prompt of `agent` ends with the actions of the agents before it."""
        prompt = prompt.copy()
        for e in range(len(prompt)):
            actions = []
            for j in range(agent):
                if length := int(mask[e, j].sum()):
                    key, candidate = self.find_candidate(
                        int(prompt[e, j]), int(choices[e, j]), action[e, j].tolist(), length
                    )
                    actions.append((j, self.trie(key).tokens(candidate)))
            if actions:
                prompt[e, agent] = self.prompt_table.extend(int(prompt[e, agent]), tuple(actions))
        return prompt

    # Forward pass

    def run_in_batches(
        self, remaining: Callable[[], Sequence[Key]], work: Callable[[Sequence[Key]], None], alone: bool = False
    ) -> None:
        """Call `work` on all `remaining` queries, in passes of the token budget. Out of memory halves the passes.

        `alone` is for results that are cached: on a CPU each query then gets a pass of its own. Larger passes gain
        little there, and the rounding of a result must not depend on which other queries were new.
        """

        def split(divisor: int) -> list[list[Key]]:
            keys = remaining()
            if alone and self.device.type == "cpu":
                return [[key] for key in keys]
            lengths = [self.tree(key, self.trie(key)).length for key in keys]
            return [[keys[i] for i in group] for group in batches(lengths, self.options.token_budget // divisor)]

        def run_all(passes: Sequence[Sequence[Key]]) -> None:
            for group in passes:
                work(group)

        self.backoff.run(split, len, run_all)

    def encode_batch(self, keys: Sequence[Key], tries: Sequence[Trie]) -> EncodedBatch:
        """Return the features of queries, from one forward pass."""
        trees = [self.tree(key, trie) for key, trie in zip(keys, tries, strict=True)]
        frozen = self.cached_features(keys, trees) if self.reads_frozen else None
        merging = self.merges_prompts and torch.is_grad_enabled()
        hidden = self.backbone.merged_features(trees) if merging else self.backbone.features(trees)
        return EncodedBatch(flatten_tries(tries, self.device), hidden, frozen)

    def cached_features(self, keys: Sequence[Key], trees: Sequence[Tree]) -> Tensor:
        """Return the frozen model's features (S, H). They are computed once, and kept up to CACHE_BYTES."""
        features = {key: self._frozen[key] for key in keys if key in self._frozen}
        tree_of = dict(zip(keys, trees, strict=True))

        def read(group: Sequence[Key]) -> None:
            new = [tree_of[key] for key in group]
            computed = self.backbone.features(new, reference=True)
            for key, own in zip(group, computed.split([tree.rows for tree in new]), strict=True):
                features[key] = self._frozen[key] = own.clone()
                self._frozen_bytes += own.nbytes

        self.run_in_batches(lambda: [key for key in keys if key not in features], read, alone=True)
        while self._frozen_bytes > CACHE_BYTES:
            self._frozen_bytes -= self._frozen.popitem(last=False)[1].nbytes
        return torch.cat([features[key] for key in keys])

    def distribution(self, output: OutputMatrix, hidden: Tensor, tries: FlatTries) -> tuple[Tensor, Tensor]:
        """Return the log-probability of every edge (M,) and the entropy at every state (S,).

        A token's probability is normalized over what the trie allows at its state, or over the vocabulary if free.
        """
        output = output.at(self.options.temperature)
        logit = output.token_logits(pick(hidden, tries.source), tries.token.unsqueeze(-1)).squeeze(-1)
        normalizer = segment_logsumexp(logit, tries.source, tries.states)
        log_prob = logit - normalizer[tries.source]
        entropy = -segment_sum(log_prob.exp() * log_prob, tries.source, tries.states)
        if bool(tries.free.any()):
            free = tries.free.nonzero().squeeze(-1)
            total, mean = output.moments(hidden[free])
            log_prob = logit - normalizer.index_put((free,), total)[tries.source]
            entropy = entropy.index_put((free,), total - mean)
        return log_prob, entropy

    def evaluate_actions(
        self, batch: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool
    ) -> ActionEvaluation:
        """Evaluate K actions: candidate `candidate[k]` of trie `tree[k]`.

        `acting` adds what a decision stores and an update does not read: the reference log-probability.
        """
        value = None if self.critic is None else self.values(batch)[batch.tries.source]
        return self.action_evaluation(batch, tree, candidate, acting, value)

    def action_evaluation(
        self, batch: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool, value: Tensor | None
    ) -> ActionEvaluation:
        """Return the evaluation of K actions, given the `value` (M,) of every edge, or None without a critic."""
        tries = batch.tries
        edges, mask = tries.rows(tree, candidate, self.slots)
        state = tries.source[edges]
        log_prob, entropy = self.distribution(self.backbone.output, batch.hidden, tries)
        reference = None
        if acting and self.options.reference:
            assert batch.frozen is not None
            reference = self.distribution(self.backbone.reference_output, batch.frozen, tries)[0]
            reference = reference[edges].masked_fill(~mask, 0.0)
        return ActionEvaluation(
            mask,
            mask & tries.branching[state],
            log_prob[edges].masked_fill(~mask, 0.0),
            entropy[state].masked_fill(~mask, 0.0),
            log_prob.new_zeros(len(tree), 1) if value is None else value[edges].masked_fill(~mask, 0.0),
            reference,
        )

    def values(self, batch: EncodedBatch) -> Tensor:
        """Return the value of every state, (S,)."""
        if self.critic is None:
            return batch.hidden.new_zeros(batch.tries.states)
        return self.critic(self.critic_features(batch)).squeeze(-1)

    def critic_features(self, batch: EncodedBatch) -> Tensor:
        """Return the features (S, H) that the critic reads."""
        if self.critic_scale is None:
            return batch.hidden
        assert batch.frozen is not None
        return self.critic_scale(batch.frozen, batch.tries.depth)
