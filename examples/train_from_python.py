"""Train, evaluate and use an agent from Python.

python examples/train_from_python.py
"""

import marl


def main(steps=20_000):
    """Train two agents on a coordination game, compare them on the same episodes, and act with the better one."""
    results = {agent: marl.train(env="toy/climbing", agent=agent, steps=steps) for agent in ("mat", "mappo")}
    scores = {agent: marl.evaluate(result, episodes=16).scores for agent, result in results.items()}
    for agent, score in scores.items():
        print(f"{agent}: return {score['test/return']:.3g}, in {results[agent].folder}")

    best = max(scores, key=lambda agent: scores[agent]["test/return"])
    policy = marl.load_policy(results[best].folder)
    env = marl.make("toy/climbing")
    obs, total, ended = env.reset(seed=0), 0.0, False
    while not ended:
        step = env.step(policy.act(obs))
        obs, total, ended = step.obs, total + step.reward.mean(), step.terminated or step.truncated
    print(f"{best} played an episode with return {total:g}")
    return scores


if __name__ == "__main__":
    main()
