"""A language model that acts: its decisions are the tokens of one action, restricted to a trie or free.

Shape legend: E environments, N agents, L slots (tokens), K rows (one agent in one situation), S states and M edges of
the tries of several situations, H features.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor, nn

from marl.agents.heads import SMALL_GAIN, mlp
from marl.agents.lm import transcript_view as story
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
from marl.agents.lm.generate import generate
from marl.agents.lm.options import LanguageOptions, TokenOptions
from marl.agents.lm.output_head import OutputMatrix
from marl.agents.lm.prompt_table import FREE, PromptTable
from marl.agents.lm.token_tree import Tree, batches
from marl.agents.lm.tokenizer import stop_at
from marl.agents.policy_base import weights_version
from marl.errors import ConfigError
from marl.objective import row_count
from marl.oom import MicroBatchBackoff
from marl.policy import Policy
from marl.transcript import TranscriptStep
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

Key = tuple[int, int, Tokens]
"""A prompt, a set of candidates, and where that is FREE the tokens that were said."""
CACHE_BYTES = 1 << 28
"""Bytes of features of the frozen model that are kept from one policy to the next."""
MIN_ANSWER = 4
"""Tokens of an answer from which it can repeat itself."""
MAX_PROMPTS = 20_000
"""Prompts and candidate sets above which those that the last rollout did not meet are forgotten."""


@dataclass(frozen=True)
class ActionEvaluation:
    """What the present policy thinks of K actions, (K, L) each; `value` may be (K, 1).

    `mask`, `trained` as in Nodes, `policy_loss` as in Evaluation, `reference_log_prob` and `node_reward` as in
    Decision.
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
class CandidateDistribution:
    """C candidates under the present policy: their texts, `cumulative` probability (C,), and the rows (C, L) that a
    decision stores of each.
    """

    texts: tuple[str, ...]
    cumulative: np.ndarray
    rows: dict[str, np.ndarray]

    def draw(self, noise: float) -> int:
        """The candidate at `noise`, uniform in [0, 1)."""
        place = int(np.searchsorted(self.cumulative, noise * self.cumulative[-1], "right"))
        return min(place, len(self.texts) - 1)

    def likeliest(self) -> int:
        return int(np.diff(self.cumulative, prepend=0.0).argmax())


@dataclass(frozen=True)
class EncodedBatch:
    """Situations laid out for one pass, with features (S, H) of the policy, and of the frozen model where needed."""

    forest: FlatTries
    hidden: Tensor
    frozen: Tensor | None


class TokenPolicy(Policy):
    """Nodes are tokens, values belong to the state before a token.

    A token's probability is renormalized, at `temperature`, over what the trie of the candidates allows; without
    candidates over the whole vocabulary. The forward pass runs once for each situation that differs, in acting as
    long as the policy stays the same, in learning once an update.
    """

    append_end_token = True
    """Candidates that begin others are closed by an end token."""
    free_sampling = True
    """Free text may come from another distribution than the policy, so decisions keep that of the sampler."""

    has_node_reward = False
    """Nodes earn something by themselves."""

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
        )
        self.critic = self.make_critic(backbone.feature_size)
        if self.critic is not None:
            self.critic.to(backbone.device)
        frozen = options.critic_reads == "frozen"
        self.critic_scale = DepthNorm(options.max_action_tokens, backbone.feature_size) if frozen else None
        if self.critic_scale is not None:
            self.critic_scale.to(backbone.device)
        self.backoff = MicroBatchBackoff("Set --token-budget to begin with smaller ones")
        self._fingerprint: tuple[int, ...] = ()
        self._menus: dict[tuple[int, int], CandidateDistribution] = {}
        self._frozen: OrderedDict[Key, Tensor] = OrderedDict()
        self._frozen_bytes = 0

    def make_critic(self, width: int) -> nn.Module | None:
        return None if self.options.critic_reads == "none" else mlp(width, self.options.critic_hidden, 1, SMALL_GAIN)

    @property
    def threaded_acting(self) -> bool:
        """Whether even the forward pass of one situation gains from several threads."""
        return self.options.model != "tiny"

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    # Acting

    def encode(self, obs: Obs) -> Inputs:
        """Numbers of prompts and candidate sets, (E, N) int64 each, and who is `alive`."""
        prompt = [[self.prompt_table.prompt_id(text) for text in row] for row in obs.agents]
        alive = torch.as_tensor(obs.alive)
        if obs.candidates is None:
            choices = torch.full(alive.shape, FREE)
        else:
            choices = torch.tensor(
                [[self.prompt_table.candidate_set_id(texts) for texts in row] for row in obs.candidates]
            )
        inputs = {"prompt": torch.tensor(prompt), "choices": choices, "alive": alive}
        return {name: x.to(self.device) for name, x in inputs.items()}

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Sample; `deterministic` takes the likeliest candidate as a whole, and of free text the likeliest tokens."""
        prompt, choices, alive = (inputs[name].cpu().numpy() for name in ("prompt", "choices", "alive"))
        envs, agents = prompt.shape
        sequential = self.options.team == "sequential"
        columns = [slice(i, i + 1) for i in range(agents)] if sequential else [slice(0, agents)]
        texts = np.empty((envs, agents), dtype=object)
        parts: list[dict[str, np.ndarray]] = []
        for column in columns:
            if column.start:
                action, mask = (np.concatenate([part[name] for part in parts], 1) for name in ("action", "mask"))
                prompt = self.extended(prompt, choices, action, mask, column.start)
            said, rows = self.decide(
                *(x[:, column].ravel() for x in (prompt, choices, alive)), generator, deterministic
            )
            texts[:, column] = said.reshape(envs, -1)
            parts.append({name: x.reshape(envs, -1, x.shape[-1]) for name, x in rows.items()})
        joined = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
        whole = {name: torch.from_numpy(x).to(self.device) for name, x in joined.items()}
        nodes = Nodes(whole["action"], whole["mask"], whole["trained"])
        extra = {
            name: whole[name] for name in ("behavior_log_prob", "reference_log_prob", "node_reward") if name in whole
        }
        return Decision(texts, nodes, whole["log_prob"], whole["value"], **extra)

    def decide(
        self, prompt: np.ndarray, choices: np.ndarray, alive: np.ndarray, generator: Generator | None, greedy: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The texts (K,) that K agents say, and their rows of the decision, (K, L) each; the dead have no nodes."""
        noise = torch.rand(len(prompt), generator=generator, device=self.device, dtype=torch.float64).tolist()
        pairs = list(zip(prompt.tolist(), choices.tolist(), strict=True))
        bound = [k for k, (_, c) in enumerate(pairs) if alive[k] and c != FREE]
        loose = [k for k, (_, c) in enumerate(pairs) if alive[k] and c == FREE]
        menus = dict(zip(bound, self.score_candidates([pairs[k] for k in bound]), strict=True))
        menus |= dict(zip(loose, self.sample_free_text([pairs[k][0] for k in loose], generator, greedy), strict=True))
        texts = np.empty(len(pairs), dtype=object)
        picked: dict[int, dict[str, np.ndarray]] = {}
        for k, (_, c) in enumerate(pairs):
            if k in menus:
                choice = menus[k].likeliest() if greedy else menus[k].draw(noise[k])
                texts[k] = menus[k].texts[choice]
                picked[k] = {name: x[choice] for name, x in menus[k].rows.items()}
            else:
                texts[k] = "" if c == FREE else self.prompt_table.tries[c].texts[0]
        blank = self.blank()
        return texts, {name: np.stack([picked.get(k, blank)[name] for k in range(len(pairs))]) for name in blank}

    def blank(self) -> dict[str, np.ndarray]:
        """The row of an agent without nodes."""
        width = self.slots
        kinds = {"action": np.int64, "mask": bool, "trained": bool, "log_prob": np.float32, "value": np.float32}
        kinds |= {"behavior_log_prob": np.float32} if self.free_sampling else {}
        kinds |= {"reference_log_prob": np.float32} if self.options.reference else {}
        kinds |= {"node_reward": np.float32} if self.has_node_reward else {}
        row = {name: np.zeros(width, kind) for name, kind in kinds.items()}
        return row | ({"value": np.zeros(1, np.float32)} if self.critic is None else {})

    def score_candidates(self, pairs: Sequence[tuple[int, int]]) -> list[CandidateDistribution]:
        """The menus of situations with candidates, from memory where the policy has not changed since."""
        present = weights_version(self.parameters())
        if present != self._fingerprint:
            self._menus, self._fingerprint = {}, present
        self.run_in_batches(
            lambda: [(*pair, ()) for pair in dict.fromkeys(pairs) if pair not in self._menus],
            self.cache_distributions,
            alone=True,
        )
        return [self._menus[pair] for pair in pairs]

    def cache_distributions(self, group: Sequence[Key]) -> None:
        """Work out the menus of situations with candidates."""
        tries = [self.trie(key) for key in group]
        sizes = [len(trie.paths) for trie in tries]
        candidate = np.concatenate([np.arange(size) for size in sizes])
        rows = self.rows(group, tries, np.arange(len(group)).repeat(sizes), candidate)
        for trie, (prompt, choices, _), part in zip(tries, group, np.cumsum(sizes), strict=True):
            mine = {name: x[part - len(trie.paths) : part] for name, x in rows.items()}
            share = np.exp(mine["log_prob"].astype(np.float64).sum(-1))
            self._menus[prompt, choices] = CandidateDistribution(trie.texts, share.cumsum(), mine)

    def sample_free_text(
        self, prompts: Sequence[int], generator: Generator | None, greedy: bool
    ) -> list[CandidateDistribution]:
        """Free text: for each prompt a menu of the one action that was sampled."""
        if not prompts:
            return []
        keys, behavior = self.generate_batch(prompts, generator, greedy)
        said: dict[Key, tuple[str, dict[str, np.ndarray]]] = {}

        def judge(group: Sequence[Key]) -> None:
            tries = [self.trie(key) for key in group]
            rows = self.rows(group, tries, np.arange(len(group)), np.zeros(len(group), np.int64))
            for k, key in enumerate(group):
                said[key] = self.free_text(key[2]), {name: x[k : k + 1] for name, x in rows.items()}

        self.run_in_batches(lambda: [key for key in dict.fromkeys(keys) if key not in said], judge)
        menus = []
        for key, sampled in zip(keys, behavior, strict=True):
            text, rows = said[key]
            menus.append(
                CandidateDistribution(
                    (text,),
                    np.ones(1),
                    rows | ({"behavior_log_prob": sampled[None]} if "behavior_log_prob" in rows else {}),
                )
            )
        return menus

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.options.stop_strings if isinstance(self.options, TokenOptions) else ()

    def free_text(self, tokens: Tokens) -> str:
        """The text of a sampled answer, which ends before a stop string."""
        text = self.backbone.tokenizer.raw(tokens)
        place = stop_at(text, self.stop_strings)
        return self.backbone.tokenizer.decode(tokens) if place < 0 else text[:place].strip()

    def generate_batch(
        self, prompts: Sequence[int], generator: Generator | None, greedy: bool
    ) -> tuple[list[Key], list[np.ndarray]]:
        """What was sampled behind prompts, and with what log-probabilities (L,) each."""
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

    def rows(
        self, keys: Sequence[Key], tries: Sequence[Trie], tree: np.ndarray, candidate: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What a decision stores of K actions, candidate `candidate[k]` in situation `tree[k]`; (K, L) each."""
        with torch.no_grad():
            judged = self.evaluate_actions(self.encode_batch(keys, tries), tree, candidate, acting=True)
        action = np.zeros(judged.mask.shape, np.int64)
        for k, (t, c) in enumerate(zip(tree, candidate, strict=True)):
            tokens = self.action(tries[t], c)
            action[k, : len(tokens)] = tokens
        parts = {
            name: getattr(judged, name)
            for name in ("mask", "trained", "log_prob", "value", "reference_log_prob", "node_reward")
        }
        if self.free_sampling:
            parts["behavior_log_prob"] = judged.log_prob
        return {"action": action} | {name: x.cpu().numpy() for name, x in parts.items() if x is not None}

    def run_in_batches(
        self, left: Callable[[], Sequence[Key]], work: Callable[[Sequence[Key]], None], alone: bool = False
    ) -> None:
        """Do `work` on what is `left` in passes of the token budget, which are halved where memory runs out.

        `alone` is for what is remembered: on a CPU a pass is then one situation. There company gains little, and the
        numbers of a situation must not depend, by rounding, on what else was new at that moment.
        """

        def split(divisor: int) -> list[list[Key]]:
            keys = left()
            if alone and self.device.type == "cpu":
                return [[key] for key in keys]
            lengths = [self.tree(key, self.trie(key)).length for key in keys]
            return [[keys[i] for i in group] for group in batches(lengths, self.options.token_budget // divisor)]

        def every(passes: Sequence[Sequence[Key]]) -> None:
            for group in passes:
                work(group)

        self.backoff.run(split, len, every)

    # Learning

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        living, located = self.locate_actions(inputs, nodes)
        if not located:
            nothing = torch.zeros(nodes.node_mask.shape, device=self.device)
            return Evaluation(nothing, nothing, nothing if self.critic is not None else nothing[..., :1], nothing)
        wanted = {place: k for k, place in enumerate(dict.fromkeys(located))}
        keys = {key: t for t, key in enumerate(dict.fromkeys(key for key, _ in wanted))}
        tree = np.array([keys[key] for key, _ in wanted], dtype=np.int64)
        candidate = np.array([c for _, c in wanted], dtype=np.int64)
        grove = self.encode_batch(list(keys), [self.trie(key) for key in keys])
        judged = self.evaluate_actions(grove, tree, candidate, acting=False)
        rows = torch.from_numpy(living).to(self.device)
        source = torch.tensor([wanted[place] for place in located], device=self.device)
        shape = nodes.node_mask.shape

        def put(x: Tensor) -> Tensor:
            return x.new_zeros(shape[0] * shape[1], x.shape[-1]).index_put((rows,), x[source]).unflatten(0, shape[:2])

        return Evaluation(
            put(judged.log_prob),
            put(judged.entropy),
            put(judged.value),
            None if judged.policy_loss is None else put(judged.policy_loss),
        )

    def locate_actions(self, inputs: Inputs, nodes: Nodes) -> tuple[np.ndarray, list[tuple[Key, int]]]:
        """The rows (of E x N) that have nodes, and for each its situation and which candidate was taken."""
        prompt, choices = self.prompt_ids(inputs, nodes), inputs["choices"].cpu().numpy()
        action, mask = nodes.action.cpu().numpy(), nodes.node_mask.cpu().numpy()
        lengths = mask.sum(-1).ravel()
        said = action.reshape(len(lengths), -1)
        rows = zip(*(x.tolist() for x in (prompt.ravel(), choices.ravel(), said, lengths)), strict=True)
        return np.flatnonzero(lengths), [self.find_candidate(*row) for row in rows if row[-1]]

    def micro_batches(self, inputs: Inputs, nodes: Nodes, rows: int, divisor: int) -> list[Tensor]:
        """Rows of like length together, equal situations side by side, up to `rows` and the token budget a pass."""
        living, located = self.locate_actions(inputs, nodes)
        count, agents = nodes.node_mask.shape[:2]
        keys: list[set[Key]] = [set() for _ in range(count)]
        for row, (key, _) in zip(living, located, strict=True):
            keys[row // agents].add(key)
        lengths = {key: self.tree(key, self.trie(key)).length for key in {key for key, _ in located}}
        first: dict[frozenset[Key], int] = {}
        groups = [first.setdefault(frozenset(each), index) for index, each in enumerate(keys)]
        longest = [max((lengths[key] for key in each), default=0) for each in keys]
        most, budget = max(1, (rows or count) // divisor), self.options.token_budget // divisor
        parts: list[list[int]] = [[]]
        met: set[Key] = set()
        for index in sorted(range(count), key=lambda i: (longest[i], groups[i], i)):
            tokens = sum(lengths[key] for key in met | keys[index])
            if parts[-1] and (len(parts[-1]) >= most or (tokens > budget and not keys[index] <= met)):
                parts.append([])
                met = set()
            parts[-1].append(index)
            met = met | keys[index]
        return [torch.tensor(part, device=nodes.node_mask.device) for part in parts]

    def value(self, inputs: Inputs) -> Tensor:
        """(E, N); agents in sequence share the value of the first one, who alone decides without the others."""
        if self.critic is None:
            return torch.zeros(inputs["alive"].shape, device=self.device)
        prompt, choices, alive = (inputs[name].cpu().numpy() for name in ("prompt", "choices", "alive"))
        if self.options.team == "sequential":
            first = alive.argmax(-1)[:, None]
            prompt, choices = (np.take_along_axis(x, first, 1).repeat(x.shape[1], 1) for x in (prompt, choices))
        pairs = list(zip(prompt.ravel().tolist(), choices.ravel().tolist(), strict=True))
        bound = [pair for pair in pairs if pair[1] != FREE]
        known = {
            pair: float(menu.rows["value"][0, 0])
            for pair, menu in zip(bound, self.score_candidates(bound), strict=True)
        }

        def judge(group: Sequence[Key]) -> None:
            grove = self.encode_batch(group, [self.trie(key) for key in group])
            values = self.values(grove)[grove.forest.root].tolist()
            known.update({key[:2]: value for key, value in zip(group, values, strict=True)})

        self.run_in_batches(lambda: [(*pair, ()) for pair in dict.fromkeys(pairs) if pair not in known], judge)
        return torch.tensor([known[pair] for pair in pairs], device=self.device).view(prompt.shape)

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Take in the scale of the frozen features, once for each situation of this rollout that has candidates.

        And forget situations, where there are too many, that it did not meet.
        """
        if self.critic_scale is not None:
            living = nodes.node_mask.any(-1).cpu().numpy()
            read, choices = self.prompt_ids(inputs, nodes), inputs["choices"].cpu().numpy()
            met = zip(read[living].tolist(), choices[living].tolist(), strict=True)
            keys: list[Key] = [(*pair, ()) for pair in dict.fromkeys(met) if pair[1] != FREE]
            scale, sums, taken = self.critic_scale, self.critic_scale.nothing(), set[Key]()

            def take(group: Sequence[Key]) -> None:
                tries = [self.trie(key) for key in group]
                trees = [self.tree(key, trie) for key, trie in zip(group, tries, strict=True)]
                sums.add_(scale.sums(self.cached_features(group, trees), flatten_tries(tries, self.device).depth))
                taken.update(group)

            self.run_in_batches(lambda: [key for key in keys if key not in taken], take)
            self.critic_scale.add(sums)
        if len(self.prompt_table.prompts) + len(self.prompt_table.tries) > MAX_PROMPTS:
            self.prompt_table.evict_except(
                set(inputs["prompt"].unique().tolist()), set(inputs["choices"].unique().tolist())
            )

    def metrics(self, inputs: Inputs, nodes: Nodes) -> dict[str, float]:
        """Return how much free text repeats itself; nothing where there is none."""
        free = inputs["choices"] == FREE
        rows = zip(nodes.action[free].cpu().numpy(), nodes.node_mask[free].cpu().numpy(), strict=True)
        answers = [action[mask].tolist() for action, mask in rows]
        pairs = [list(pairwise(tokens)) for tokens in answers if len(tokens) >= MIN_ANSWER]
        if not pairs:
            return {}
        repeated = [1.0 - len(set(each)) / len(each) for each in pairs]
        return {"policy/repeated_text": sum(repeated) / len(repeated)}

    def after_update(self) -> None:
        self._fingerprint = ()

    def share_backbone(self, original: "TokenPolicy") -> None:
        """Use the very model of a policy of the same options for another environment, and its smaller passes.

        Raises ConfigError where the two environments give the words of a vocabulary other meanings.
        """
        if self.options.model == "tiny" and self.spec.words != original.spec.words:
            raise ConfigError(
                f"{self.spec.name} and {original.spec.name} have words of their own, which model tiny is made of; give "
                "tasks of the same words, or another --model"
            )
        self.backbone, self.backoff = original.backbone, original.backoff

    # Telling

    def transcript(self, episode: Sequence[TranscriptStep]) -> str:
        return story.transcript(self, episode)

    def picture(self, episode: Sequence[TranscriptStep]) -> np.ndarray:
        return story.picture(self, episode)

    def token_texts(self, action: list[int], text: str) -> list[str]:  # noqa: ARG002 - for policies over whole actions
        """The texts of an action's nodes."""
        ends = self.backbone.tokenizer.ends
        return ["(end)" if token in ends else self.backbone.tokenizer.decode((token,)) for token in action]

    def prompt_ids(self, inputs: Inputs, nodes: Nodes) -> np.ndarray:
        """(E, N): the numbers of the prompts that the agents read before they did what `nodes` says."""
        prompt, choices = (inputs[name].cpu().numpy() for name in ("prompt", "choices"))
        if self.options.team == "sequential":
            action, mask = nodes.action.cpu().numpy(), nodes.node_mask.cpu().numpy()
            for agent in range(1, prompt.shape[1]):
                prompt = self.extended(prompt, choices, action, mask, agent)
        return prompt

    # The model

    def evaluate_actions(
        self, grove: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool
    ) -> ActionEvaluation:
        """Judge K actions, candidate `candidate[k]` of trie `tree[k]`, as a decision stores them or an update reads."""
        value = None if self.critic is None else self.values(grove)[grove.forest.source]
        return self.action_evaluation(grove, tree, candidate, acting, value)

    def action_evaluation(
        self, grove: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool, value: Tensor | None
    ) -> ActionEvaluation:
        """The same, given the `value` (M,) of every edge, if there is one."""
        forest = grove.forest
        edges, mask = forest.rows(tree, candidate, self.slots)
        state = forest.source[edges]
        log_prob, entropy = self.distribution(self.backbone.output, grove.hidden, forest)
        reference = None
        if acting and self.options.reference:
            assert grove.frozen is not None
            reference = self.distribution(self.backbone.reference_output, grove.frozen, forest)[0]
            reference = reference[edges].masked_fill(~mask, 0.0)
        return ActionEvaluation(
            mask,
            mask & forest.branching[state],
            log_prob[edges].masked_fill(~mask, 0.0),
            entropy[state].masked_fill(~mask, 0.0),
            log_prob.new_zeros(len(tree), 1) if value is None else value[edges].masked_fill(~mask, 0.0),
            reference,
        )

    def distribution(self, output: OutputMatrix, hidden: Tensor, forest: FlatTries) -> tuple[Tensor, Tensor]:
        """The log-probability of every edge (M,) and the entropy at every state (S,)."""
        output = output.at(self.options.temperature)
        logit = output.token_logits(pick(hidden, forest.source), forest.token.unsqueeze(-1)).squeeze(-1)
        normalizer = segment_logsumexp(logit, forest.source, forest.states)
        log_prob = logit - normalizer[forest.source]
        entropy = -segment_sum(log_prob.exp() * log_prob, forest.source, forest.states)
        if bool(forest.free.any()):
            free = forest.free.nonzero().squeeze(-1)
            whole, mean = output.moments(hidden[free])
            log_prob = logit - normalizer.index_put((free,), whole)[forest.source]
            entropy = entropy.index_put((free,), whole - mean)
        return log_prob, entropy

    def values(self, grove: EncodedBatch) -> Tensor:
        """(S,): the value of every state."""
        if self.critic is None:
            return grove.hidden.new_zeros(grove.forest.states)
        return self.critic(self.critic_features(grove)).squeeze(-1)

    def critic_features(self, grove: EncodedBatch) -> Tensor:
        """(S, H): what the critic reads of every state."""
        if self.critic_scale is None:
            return grove.hidden
        assert grove.frozen is not None
        return self.critic_scale(grove.frozen, grove.forest.depth)

    def encode_batch(self, keys: Sequence[Key], tries: Sequence[Trie]) -> EncodedBatch:
        trees = [self.tree(key, trie) for key, trie in zip(keys, tries, strict=True)]
        frozen = self.cached_features(keys, trees) if self.reads_frozen else None
        return EncodedBatch(flatten_tries(tries, self.device), self.backbone.features(trees), frozen)

    def cached_features(self, keys: Sequence[Key], trees: Sequence[Tree]) -> Tensor:
        """(S, H) features of the frozen model, which are computed once as long as there is room to keep them."""
        known = {key: self._frozen[key] for key in keys if key in self._frozen}
        named = dict(zip(keys, trees, strict=True))

        def read(group: Sequence[Key]) -> None:
            new = [named[key] for key in group]
            features = self.backbone.features(new, reference=True)
            for key, mine in zip(group, features.split([tree.rows for tree in new]), strict=True):
                known[key] = self._frozen[key] = mine.clone()
                self._frozen_bytes += mine.nbytes

        self.run_in_batches(lambda: [key for key in keys if key not in known], read, alone=True)
        while self._frozen_bytes > CACHE_BYTES:
            self._frozen_bytes -= self._frozen.popitem(last=False)[1].nbytes
        return torch.cat([known[key] for key in keys])

    # Situations

    def tree(self, key: Key, trie: Trie) -> Tree:
        """What the language model reads of a situation; the last token of an action is not needed."""
        token, parent = trie.inner()
        return Tree(self.prompt_table.prompts[key[0]], tuple(token.tolist()), tuple(parent.tolist()))

    def trie(self, key: Key) -> Trie:
        _, choices, tokens = key
        if choices != FREE:
            return self.prompt_table.tries[choices]
        said = [tokens] if tokens else []
        return build_trie([""] * len(said), said, None, self.slots, free=True)

    def action(self, trie: Trie, candidate: int) -> Tokens:
        """What is stored as the action of a candidate."""
        return trie.tokens(candidate)

    def find_candidate(self, prompt: int, choices: int, action: list[int], length: int) -> tuple[Key, int]:
        """The inverse: the situation, and which of its candidates a stored action is."""
        tokens = tuple(action[:length])
        if choices == FREE:
            return (prompt, FREE, tokens), 0
        return (prompt, choices, ()), self.prompt_table.tries[choices].index[tokens]

    def extended(
        self, prompt: np.ndarray, choices: np.ndarray, action: np.ndarray, mask: np.ndarray, agent: int
    ) -> np.ndarray:
        """`prompt` (E, N) with what the agents before `agent` have said written behind that agent's own."""
        prompt = prompt.copy()
        for e in range(len(prompt)):
            said = []
            for j in range(agent):
                if length := int(mask[e, j].sum()):
                    key, candidate = self.find_candidate(
                        int(prompt[e, j]), int(choices[e, j]), action[e, j].tolist(), length
                    )
                    said.append((j, self.trie(key).tokens(candidate)))
            if said:
                prompt[e, agent] = self.prompt_table.extend(int(prompt[e, agent]), tuple(said))
        return prompt
