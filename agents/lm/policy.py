"""A language model that acts: its decisions are the tokens of one action, chosen among candidates or free.

Shape legend: E environments, N agents, L slots (tokens), K agent rows, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor

from marl.agents.lm import transcript_view
from marl.agents.lm.backbone import Backbone
from marl.agents.lm.candidate_trie import Tokens, Trie, flatten_tries
from marl.agents.lm.generate import generate
from marl.agents.lm.options import LanguageOptions, TokenOptions
from marl.agents.lm.prompt_table import FREE, common_length
from marl.agents.lm.token_model import Key, TokenModel
from marl.agents.lm.tokenizer import stop_at
from marl.agents.policy_base import weights_version
from marl.errors import ConfigError
from marl.objective import row_count
from marl.transcript import TranscriptStep
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

MIN_ANSWER = 4
"""Tokens of an answer from which the metric of repetition counts it."""
MAX_PROMPTS = 20_000
"""Prompts and candidate sets above which those outside the last rollout are evicted."""


@dataclass(frozen=True)
class CandidateDistribution:
    """Distribution of C candidates under the current policy.

    `texts` (C,), `cumulative` probability (C,), and `rows`: what a decision stores of each candidate, (C, L).
    """

    texts: tuple[str, ...]
    cumulative: np.ndarray
    rows: dict[str, np.ndarray]

    def sample(self, noise: float) -> int:
        """Return the candidate at `noise`, which is uniform in [0, 1)."""
        index = int(np.searchsorted(self.cumulative, noise * self.cumulative[-1], "right"))
        return min(index, len(self.texts) - 1)

    def most_probable(self) -> int:
        """Return the most probable candidate."""
        return int(np.diff(self.cumulative, prepend=0.0).argmax())


class TokenPolicy(TokenModel):
    """Nodes are tokens. A value belongs to the state before a token.

    A token's probability is normalized, at `temperature`, over what the candidates allow, or over the vocabulary
    without candidates. Equal queries share one forward pass: in acting while the weights stay the same, in learning
    within an update.
    """

    free_sampling = True
    """Free text may be sampled from another distribution than the policy, so decisions store its log-probability."""
    has_node_reward = False
    """Decisions store a reward of each node."""

    def __init__(self, spec: EnvSpec, options: LanguageOptions, backbone: Backbone) -> None:
        super().__init__(spec, options, backbone)
        self._weights_version: tuple[int, ...] = ()
        self._distributions: dict[tuple[int, int], CandidateDistribution] = {}

    @property
    def threaded_acting(self) -> bool:
        """The forward pass of one query gains from several threads."""
        return self.options.model != "tiny"

    def encode(self, obs: Obs) -> Inputs:
        """Return ids of prompts and candidate sets, "prompt" and "choices" (E, N) int64, and "alive" (E, N).

        In conversations "prompt" holds ids of observations, see `read_prompts`.
        """
        table = self.prompt_table
        number = table.observation_id if self.has_history or self.spec.conversation else table.prompt_id
        prompt = [[number(text) for text in row] for row in obs.agents]
        alive = torch.as_tensor(obs.alive)
        if obs.candidates is None:
            choices = torch.full(alive.shape, FREE)
        else:
            choices = torch.tensor(
                [[self.prompt_table.candidate_set_id(texts) for texts in row] for row in obs.candidates]
            )
        inputs = {"prompt": torch.tensor(prompt), "choices": choices, "alive": alive}
        return {name: x.to(self.device) for name, x in inputs.items()}

    # Acting

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Sample actions. `deterministic` takes the most probable candidate, and in free text each likeliest token."""
        choices, alive = (inputs[name].cpu().numpy() for name in ("choices", "alive"))
        prompt = self.read_prompts(inputs)
        envs, agents = prompt.shape
        sequential = self.options.team == "sequential"
        columns = [slice(i, i + 1) for i in range(agents)] if sequential else [slice(0, agents)]
        texts = np.empty((envs, agents), dtype=object)
        parts: list[dict[str, np.ndarray]] = []
        for column in columns:
            if column.start:
                action, mask = (np.concatenate([part[name] for part in parts], 1) for name in ("action", "mask"))
                prompt = self.extended(prompt, choices, action, mask, column.start)
            chosen, rows = self.decide(
                *(x[:, column].ravel() for x in (prompt, choices, alive)), generator, deterministic
            )
            texts[:, column] = chosen.reshape(envs, -1)
            parts.append({name: x.reshape(envs, -1, x.shape[-1]) for name, x in rows.items()})
        joined = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
        stored = {name: torch.from_numpy(x).to(self.device) for name, x in joined.items()}
        nodes = Nodes(stored["action"], stored["mask"], stored["trained"])
        optional = ("behavior_log_prob", "reference_log_prob", "node_reward")
        extra = {name: stored[name] for name in optional if name in stored}
        context = self.next_contexts(inputs, prompt, joined["action"], joined["mask"])
        return Decision(texts, nodes, stored["log_prob"], stored["value"], **extra, recurrent_state=context)

    def decide(
        self, prompt: np.ndarray, choices: np.ndarray, alive: np.ndarray, generator: Generator | None, greedy: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the texts (K,) of K agents, and their rows of the decision, (K, L) each. Dead agents have no nodes."""
        noise = torch.rand(len(prompt), generator=generator, device=self.device, dtype=torch.float64).tolist()
        pairs = list(zip(prompt.tolist(), choices.tolist(), strict=True))
        bound = [k for k, (_, c) in enumerate(pairs) if alive[k] and c != FREE]
        free = [k for k, (_, c) in enumerate(pairs) if alive[k] and c == FREE]
        options = dict(zip(bound, self.score_candidates([pairs[k] for k in bound]), strict=True))
        options |= dict(zip(free, self.sample_free_text([pairs[k][0] for k in free], generator, greedy), strict=True))
        texts = np.empty(len(pairs), dtype=object)
        chosen: dict[int, dict[str, np.ndarray]] = {}
        for k, (_, c) in enumerate(pairs):
            if k in options:
                index = options[k].most_probable() if greedy else options[k].sample(noise[k])
                texts[k] = options[k].texts[index]
                chosen[k] = {name: x[index] for name, x in options[k].rows.items()}
            else:
                texts[k] = "" if c == FREE else self.prompt_table.tries[c].texts[0]
        blank = self.blank_row()
        return texts, {name: np.stack([chosen.get(k, blank)[name] for k in range(len(pairs))]) for name in blank}

    def blank_row(self) -> dict[str, np.ndarray]:
        """Return the row of a decision for an agent without nodes."""
        width = self.slots
        kinds = {"action": np.int64, "mask": bool, "trained": bool, "log_prob": np.float32, "value": np.float32}
        kinds |= {"behavior_log_prob": np.float32} if self.free_sampling else {}
        kinds |= {"reference_log_prob": np.float32} if self.options.reference else {}
        kinds |= {"node_reward": np.float32} if self.has_node_reward else {}
        row = {name: np.zeros(width, kind) for name, kind in kinds.items()}
        return row | ({"value": np.zeros(1, np.float32)} if self.critic is None else {})

    def score_candidates(self, pairs: Sequence[tuple[int, int]]) -> list[CandidateDistribution]:
        """Return the distributions of pairs (prompt id, candidate set id). They are cached until the weights change."""
        version = weights_version(self.parameters())
        if version != self._weights_version:
            self._distributions, self._weights_version = {}, version
        self.run_in_batches(
            lambda: [(*pair, ()) for pair in dict.fromkeys(pairs) if pair not in self._distributions],
            self.cache_distributions,
            alone=True,
        )
        return [self._distributions[pair] for pair in pairs]

    def cache_distributions(self, group: Sequence[Key]) -> None:
        """Compute the distributions of queries with candidates."""
        tries = [self.trie(key) for key in group]
        sizes = [len(trie.paths) for trie in tries]
        candidate = np.concatenate([np.arange(size) for size in sizes])
        rows = self.decision_rows(group, tries, np.arange(len(group)).repeat(sizes), candidate)
        for trie, (prompt, choices, _), stop in zip(tries, group, np.cumsum(sizes), strict=True):
            own = {name: x[stop - len(trie.paths) : stop] for name, x in rows.items()}
            probability = np.exp(own["log_prob"].astype(np.float64).sum(-1))
            self._distributions[prompt, choices] = CandidateDistribution(trie.texts, probability.cumsum(), own)

    def sample_free_text(
        self, prompts: Sequence[int], generator: Generator | None, greedy: bool
    ) -> list[CandidateDistribution]:
        """Sample one free text for each prompt id. Returns it as a distribution of one candidate."""
        if not prompts:
            return []
        keys, behavior = self.generate_batch(prompts, generator, greedy)
        evaluated: dict[Key, tuple[str, dict[str, np.ndarray]]] = {}

        def evaluate(group: Sequence[Key]) -> None:
            tries = [self.trie(key) for key in group]
            rows = self.decision_rows(group, tries, np.arange(len(group)), np.zeros(len(group), np.int64))
            for k, key in enumerate(group):
                evaluated[key] = self.free_text(key[2]), {name: x[k : k + 1] for name, x in rows.items()}

        self.run_in_batches(lambda: [key for key in dict.fromkeys(keys) if key not in evaluated], evaluate)
        distributions = []
        for key, sampled in zip(keys, behavior, strict=True):
            text, rows = evaluated[key]
            if "behavior_log_prob" in rows:
                rows = rows | {"behavior_log_prob": sampled[None]}
            distributions.append(CandidateDistribution((text,), np.ones(1), rows))
        return distributions

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings before which free text ends."""
        return self.options.stop_strings if isinstance(self.options, TokenOptions) else ()

    def free_text(self, tokens: Tokens) -> str:
        """Return the text of a sampled answer, cut before a stop string."""
        text = self.backbone.tokenizer.raw(tokens)
        stop = stop_at(text, self.stop_strings)
        return self.backbone.tokenizer.decode(tokens) if stop < 0 else text[:stop].strip()

    def generate_batch(
        self, prompts: Sequence[int], generator: Generator | None, greedy: bool
    ) -> tuple[list[Key], list[np.ndarray]]:
        """Return a sampled answer for each prompt id as a query, and the sampler's log-probabilities (L,) of it."""
        options = self.options
        texts = [self.prompt_table.prompts[prompt] for prompt in prompts]
        size = max(map(len, texts)) + self.slots

        def split(divisor: int) -> list[slice]:
            count = max(1, options.token_budget // divisor // size)
            return [slice(start, min(start + count, len(texts))) for start in range(0, len(texts), count)]

        def work(passes: Sequence[slice]) -> tuple[list[Key], list[np.ndarray]]:
            keys: list[Key] = []
            behavior: list[np.ndarray] = []
            for part in passes:
                answers = generate(
                    self.backbone,
                    texts[part],
                    max_tokens=self.slots,
                    temperature=options.temperature,
                    top_p=options.top_p if isinstance(options, TokenOptions) else 1.0,
                    stop_strings=self.stop_strings,
                    greedy=greedy,
                    generator=generator,
                )
                keys += [(prompt, FREE, answers.ids(row)) for row, prompt in enumerate(prompts[part])]
                sampled = answers.behavior_log_prob.cpu().numpy()
                behavior += list(np.pad(sampled, ((0, 0), (0, self.slots - sampled.shape[1]))))
            return keys, behavior

        return self.backoff.run(split, row_count, work)

    def decision_rows(
        self, keys: Sequence[Key], tries: Sequence[Trie], tree: np.ndarray, candidate: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return what a decision stores of K actions, (K, L) each: candidate `candidate[k]` of query `tree[k]`."""
        with torch.no_grad():
            evaluated = self.evaluate_actions(self.encode_batch(keys, tries), tree, candidate, acting=True)
        action = np.zeros(evaluated.mask.shape, np.int64)
        for k, (t, c) in enumerate(zip(tree, candidate, strict=True)):
            tokens = self.action(tries[t], c)
            action[k, : len(tokens)] = tokens
        parts = {
            name: getattr(evaluated, name)
            for name in ("mask", "trained", "log_prob", "value", "reference_log_prob", "node_reward")
        }
        if self.free_sampling:
            parts["behavior_log_prob"] = evaluated.log_prob
        return {"action": action} | {name: x.cpu().numpy() for name, x in parts.items() if x is not None}

    # Learning

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability, entropy and value of stored tokens, differentiable. Equal queries are read once."""
        living, located = self.locate_actions(inputs, nodes)
        if not located:
            zeros = torch.zeros(nodes.node_mask.shape, device=self.device)
            return Evaluation(zeros, zeros, zeros if self.critic is not None else zeros[..., :1], zeros)
        unique = {place: k for k, place in enumerate(dict.fromkeys(located))}
        keys = {key: t for t, key in enumerate(dict.fromkeys(key for key, _ in unique))}
        tree = np.array([keys[key] for key, _ in unique], dtype=np.int64)
        candidate = np.array([c for _, c in unique], dtype=np.int64)
        batch = self.encode_batch(list(keys), [self.trie(key) for key in keys])
        evaluated = self.evaluate_actions(batch, tree, candidate, acting=False)
        rows = torch.from_numpy(living).to(self.device)
        source = torch.tensor([unique[place] for place in located], device=self.device)
        shape = nodes.node_mask.shape

        def scatter(x: Tensor) -> Tensor:
            return x.new_zeros(shape[0] * shape[1], x.shape[-1]).index_put((rows,), x[source]).unflatten(0, shape[:2])

        return Evaluation(
            scatter(evaluated.log_prob),
            scatter(evaluated.entropy),
            scatter(evaluated.value),
            None if evaluated.policy_loss is None else scatter(evaluated.policy_loss),
        )

    def micro_batches(self, inputs: Inputs, nodes: Nodes, rows: int, divisor: int) -> list[Tensor]:
        """Return the rows of each pass: up to `rows` and the token budget, sorted by length, equal queries together."""
        living, located = self.locate_actions(inputs, nodes)
        count, agents = nodes.node_mask.shape[:2]
        keys: list[set[Key]] = [set() for _ in range(count)]
        for row, (key, _) in zip(living, located, strict=True):
            keys[row // agents].add(key)
        lengths = {key: self.tree(key, self.trie(key)).length for key in {key for key, _ in located}}
        first: dict[frozenset[Key], int] = {}
        groups = [first.setdefault(frozenset(each), index) for index, each in enumerate(keys)]
        longest = [max((lengths[key] for key in each), default=0) for each in keys]
        max_rows, budget = max(1, (rows or count) // divisor), self.options.token_budget // divisor
        order = sorted(range(count), key=lambda i: (longest[i], groups[i], i))
        if self.merges_prompts:  # the turns of a conversation together
            prompts = self.prompt_table.prompts
            order.sort(key=lambda i: [prompts[number] for number in sorted({key[0] for key in keys[i]})])
        parts: list[list[int]] = [[]]
        included: set[Key] = set()
        tokens, last = 0, ()
        for index in order:
            new = keys[index] - included
            added = sum(lengths[key] for key in new)
            if self.merges_prompts and new:
                prompt = self.prompt_table.prompts[min(key[0] for key in new)]
                added, last = added - common_length(last, prompt) * bool(included), prompt
            if parts[-1] and (len(parts[-1]) >= max_rows or (tokens + added > budget and new)):
                parts.append([])
                included, tokens = set(), 0
                added = sum(lengths[key] for key in keys[index])
            parts[-1].append(index)
            included |= keys[index]
            tokens += added
        return [torch.tensor(part, device=nodes.node_mask.device) for part in parts]

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N). A sequential team shares the value of its first living agent, which decides alone."""
        if self.critic is None:
            return torch.zeros(inputs["alive"].shape, device=self.device)
        choices, alive = (inputs[name].cpu().numpy() for name in ("choices", "alive"))
        prompt = self.read_prompts(inputs)
        if self.options.team == "sequential":
            first = alive.argmax(-1)[:, None]
            prompt, choices = (np.take_along_axis(x, first, 1).repeat(x.shape[1], 1) for x in (prompt, choices))
        pairs = list(zip(prompt.ravel().tolist(), choices.ravel().tolist(), strict=True))
        bound = [pair for pair in pairs if pair[1] != FREE]
        values = {
            pair: float(distribution.rows["value"][0, 0])
            for pair, distribution in zip(bound, self.score_candidates(bound), strict=True)
        }

        def evaluate(group: Sequence[Key]) -> None:
            batch = self.encode_batch(group, [self.trie(key) for key in group])
            computed = self.values(batch)[batch.tries.root].tolist()
            values.update({key[:2]: value for key, value in zip(group, computed, strict=True)})

        self.run_in_batches(lambda: [(*pair, ()) for pair in dict.fromkeys(pairs) if pair not in values], evaluate)
        return torch.tensor([values[pair] for pair in pairs], device=self.device).view(prompt.shape)

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Add the rollout's frozen features to the critic's normalization, each query with candidates once.

        Beyond MAX_PROMPTS, prompts and candidate sets outside this rollout are evicted.
        """
        if self.critic_scale is not None:
            living = nodes.node_mask.any(-1).cpu().numpy()
            prompts, choices = self.prompt_ids(inputs, nodes), inputs["choices"].cpu().numpy()
            pairs = zip(prompts[living].tolist(), choices[living].tolist(), strict=True)
            keys: list[Key] = [(*pair, ()) for pair in dict.fromkeys(pairs) if pair[1] != FREE]
            scale, sums, done = self.critic_scale, self.critic_scale.nothing(), set[Key]()

            def add(group: Sequence[Key]) -> None:
                tries = [self.trie(key) for key in group]
                trees = [self.tree(key, trie) for key, trie in zip(group, tries, strict=True)]
                sums.add_(scale.sums(self.cached_features(group, trees), flatten_tries(tries, self.device).depth))
                done.update(group)

            self.run_in_batches(lambda: [key for key in keys if key not in done], add)
            self.critic_scale.add(sums)
        if len(self.prompt_table.prompts) + len(self.prompt_table.tries) > MAX_PROMPTS:
            seen = set(inputs["prompt"].unique().tolist())
            read = (
                set(self.prompt_ids(inputs, nodes).ravel().tolist())
                if self.has_history or self.spec.conversation
                else seen
            )
            self.prompt_table.evict_except(read, set(inputs["choices"].unique().tolist()), seen)

    def metrics(self, inputs: Inputs, nodes: Nodes) -> dict[str, float]:
        """Return the mean share of repeated token pairs in free text, if there is any, and of dropped turns."""
        metrics: dict[str, float] = {}
        if self.has_history:
            metrics["policy/dropped_turns"] = float(self.prompt_table.dropped_turns)
            self.prompt_table.dropped_turns = 0
        free = inputs["choices"] == FREE
        rows = zip(nodes.action[free].cpu().numpy(), nodes.node_mask[free].cpu().numpy(), strict=True)
        answers = [action[mask].tolist() for action, mask in rows]
        pairs = [list(pairwise(tokens)) for tokens in answers if len(tokens) >= MIN_ANSWER]
        if not pairs:
            return metrics
        repeated = [1.0 - len(set(each)) / len(each) for each in pairs]
        return metrics | {"policy/repeated_text": sum(repeated) / len(repeated)}

    def after_update(self) -> None:
        """Drop the cached distributions."""
        self._weights_version = ()

    def share_backbone(self, original: "TokenPolicy") -> None:
        """Use the language model of `original`, a policy of the same options for another environment.

        Raises ConfigError if model tiny's words have other meanings in the two environments.
        """
        if self.options.model == "tiny" and self.spec.words != original.spec.words:
            raise ConfigError(
                f"{self.spec.name} and {original.spec.name} have words of their own, which model tiny is made of; give "
                "tasks of the same words, or another --model"
            )
        self.backbone, self.backoff = original.backbone, original.backoff

    # Transcripts

    def transcript(self, episode: Sequence[TranscriptStep]) -> str:
        """Return an episode as Markdown."""
        return transcript_view.transcript(self, episode)

    def picture(self, episode: Sequence[TranscriptStep]) -> np.ndarray:
        """Return an image of the advantage of every token, (height, width, 3) uint8."""
        return transcript_view.picture(self, episode)

    def token_texts(self, action: list[int], text: str) -> list[str]:  # noqa: ARG002 - for policies over whole actions
        """Return the texts of an action's nodes."""
        ends = self.backbone.tokenizer.ends
        return ["(end)" if token in ends else self.backbone.tokenizer.decode((token,)) for token in action]
