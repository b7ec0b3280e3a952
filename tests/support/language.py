"""Language agents for tests: small situations, and what the model says of them worked out the long way round."""

import gymnasium
import numpy as np
import torch

from marl.registry import AGENTS
from marl.types import EnvSpec, Obs

PROMPTS = ("You stand in the kitchen. A tomato is here.", "You stand in the hall.", "The door is shut.")
CANDIDATES = (
    ("take the tomato", "go north", "go south", "go south by boat"),
    ("go north", "go south"),
    ("open the door",),
)


def spec_of(agents=("cook",), words=()):
    text = gymnasium.spaces.Text(10_000)
    said = tuple(text for texts in CANDIDATES for text in texts)
    return EnvSpec("kitchen", tuple(agents), text, text, None, words=(*PROMPTS, *said, *words))


def make_agent(name, spec=None, **options):
    """A language agent on a fresh tiny model; its heads are seeded."""
    entry = AGENTS.get(name)
    torch.manual_seed(0)
    return entry.make(spec or spec_of(), entry.options(**options))


def observe(rows, free=False, alive=None):
    """An observation of environments whose agents are in situations `rows`, (E, N) indices of PROMPTS."""
    candidates = None if free else tuple(tuple(CANDIDATES[s] for s in row) for row in rows)
    living = np.ones((len(rows), len(rows[0])), bool) if alive is None else np.array(alive)
    return Obs(tuple(tuple(PROMPTS[s] for s in row) for row in rows), living, candidates=candidates)


def stir(policy, scale=0.3):
    """Move every weight that learns at random, so that the policy is far from its beginning."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad and weight.dim() > 1:
                weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)
    policy.after_update()


def next_logits(policy, prompt, tokens):
    """(len(tokens), V) logits before each token of an action behind a prompt, by the plain model."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        logits = policy.backbone.model(input_ids=ids, use_cache=False).logits[0].double()
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
