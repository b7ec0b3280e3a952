"""Games of text as graphs: all that can be reached, found by playing, and its values."""

import re

import numpy as np


def pieces(text):
    return re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text)


class Graph:
    """Every state that a deterministic game with one agent can reach, by playing its functions.

    `turns[state][action]` is what an action leads to; the state of an ended game has no actions.
    """

    def __init__(self, env):
        self.env = env
        self.random = np.random.default_rng(0)
        env.reset(0)
        self.start = env.state
        self.states, self.turns, self.prompt, self.candidates = [], {}, {}, {}
        waiting = [(self.start, False)]
        seen = {self.start}
        while waiting:
            state, ended = waiting.pop()
            self.states.append(state)
            env.state = state
            self.prompt[state] = env._prompt(state)
            self.candidates[state] = () if ended else tuple(env._candidates(state))
            self.turns[state] = {action: env.play(action) for action in self.candidates[state]}
            for turn in self.turns[state].values():
                if turn.state not in seen:
                    seen.add(turn.state)
                    waiting.append((turn.state, turn.ended))

    def options(self, state, value, each_word=False):
        """The value of each action, given those of states; the discount counts primitive steps, or words."""
        worth = {}
        for action, turn in self.turns[state].items():
            later = 0.0 if turn.ended else self.env.gamma**turn.duration * value[turn.state]
            worth[action] = turn.reward + later
            if each_word:
                worth[action] *= self.env.gamma ** (len(action.split()) - 1)
        return worth

    def values(self, greedy=True, each_word=False):
        """The value of each state under the best policy, or under uniform choices."""
        value = dict.fromkeys(self.states, 0.0)
        change = 1.0
        while change > 1e-13:
            change = 0.0
            for state in self.states:
                if worth := list(self.options(state, value, each_word).values()):
                    new = max(worth) if greedy else float(np.mean(worth))
                    change = max(change, abs(new - value[state]))
                    value[state] = new
        return value

    def start_options(self, value, each_word=False):
        return self.options(self.start, value, each_word)

    @property
    def live(self):
        """The states in which there is something to do."""
        return [state for state in self.states if self.turns[state]]

    def prompts(self):
        return {self.prompt[state] for state in self.live}

    def unknown_pieces(self):
        """Return the words of prompts and actions that the environment does not declare."""
        texts = [text for state in self.states for text in (self.prompt[state], *self.candidates[state])]
        return {piece for text in texts for piece in pieces(text)} - set(self.env.spec.words)

    def idle(self):
        """Pairs of a state and an action that leads back to it."""
        return {(state, action) for state in self.live for action, turn in self.turns[state].items()
                if turn.state == state}  # fmt: skip

    def chance(self, limit):
        """Return exact values for uniform choices: the probability of success within `limit` primitive steps, and mean
        and standard deviation of the discounted return."""
        gamma, play = self.env.gamma, {(self.start, 0, 0.0): 1.0}
        success = mean = square = 0.0
        while play:
            following = {}
            for (state, time, total), weight in play.items():
                for turn in self.turns[state].values():
                    share = weight / len(self.turns[state])
                    now, later = total + gamma**time * turn.reward, time + turn.duration
                    if turn.ended or later >= limit:
                        success += share * turn.success
                        mean += share * now
                        square += share * now**2
                    else:
                        key = (turn.state, later, now)
                        following[key] = following.get(key, 0.0) + share
            play = following
        return success, mean, (square - mean**2) ** 0.5

    def optimum(self):
        return self.values()[self.start]

    def plan(self):
        """The actions of a best policy from the start to the end."""
        value, state, ended, actions = self.values(), self.start, False, []
        while not ended:
            worth = self.options(state, value)
            action = max(worth, key=worth.get)
            actions.append(action)
            state, ended = self.turns[state][action].state, self.turns[state][action].ended
        return actions
