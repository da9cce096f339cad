"""How long does an agent survive in TakeCover that imitates the planner of `play_oracle.py` from z, c and h?

    python analysis_scripts/imitate_oracle.py takecover --hidden-units 256 --out imitation.json

Trains a classifier of the three actions on C's inputs by DAgger (Ross et al. 2011). The planner plays the first
episodes, the classifier the others. The planner, which reads the engine's positions, gives the cost of every action;
the loss is the expected cost of the classifier's actions. V and M are not trained. The score is a lower bound of what
z, c and h suffice for, not that of an agent without privileged information.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # small matrices

import argparse
import time

import numpy as np
import torch
from play_oracle import ACTIONS, Planner, environment, in_frame
from results import write_results
from torch import nn

from worldmodels import ConvVAE, pretrained
from worldmodels.analysis.stats import describe, format_interval
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import load_model
from worldmodels.rollout.players import episode_seed

STRIDE = 2  # steps between two labels of an episode
BATCH, STEPS, LAST_STEPS = 512, 4000, 12_000  # of an iteration's training, and of the last one's
MAX_COST = 1.0  # of an action above the best one: a certain hit
COST_WEIGHT, LOGIT_PENALTY = 20.0, 1e-3


class Classifier:
    """Actions from z, c and h, which are standardized.

    Args:
        size: Number of features.
        hidden_units: Units of the hidden layer, 0 for a linear classifier.
    """

    def __init__(self, size, hidden_units):
        layers = (nn.Linear(size, hidden_units), nn.ReLU(), nn.Linear(hidden_units, 3))
        self.network = nn.Sequential(*layers) if hidden_units else nn.Linear(size, 3)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.mean, self.std = np.zeros(size, np.float32), np.ones(size, np.float32)

    def logits(self, features):
        """Compute the logits of ACTIONS, (..., 3), from features (..., F)."""
        return self.network(torch.from_numpy((features - self.mean) / self.std))

    @torch.no_grad()
    def act(self, features):
        """Choose an action from features (F,)."""
        return ACTIONS[int(self.logits(features).argmax())]

    def fit(self, features, costs, steps):
        """Minimise the expected cost of the actions by Adam.

        Args:
            features: (N, F) float32 features.
            costs: (N, 3) costs of ACTIONS; above MAX_COST over the best action they are clipped.
            steps: Number of optimizer steps.

        Returns:
            Mean cost of the chosen actions above the best ones.
        """
        self.mean, self.std = features.mean(axis=0), features.std(axis=0) + 1e-3
        regret = np.minimum(costs - costs.min(axis=1, keepdims=True), MAX_COST).astype(np.float32)
        for step in range(steps):
            rows = torch.randint(len(features), (BATCH,)).numpy()
            logits = self.logits(features[rows])
            expected = (logits.softmax(dim=1) * torch.from_numpy(regret[rows])).sum(dim=1).mean()
            self.optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps) + 1e-5
            self.optimizer.zero_grad()
            (COST_WEIGHT * expected + LOGIT_PENALTY * logits.square().mean()).backward()
            self.optimizer.step()
        with torch.no_grad():
            chosen = self.logits(features).argmax(dim=1).numpy()
        return regret[np.arange(len(regret)), chosen].mean()


class Game:
    """TakeCover with V, M and the planner.

    Args:
        run: Run folder, or name of a pretrained world model.
    """

    def __init__(self, run):
        folder = pretrained.resolve(run)
        self.encoder = Encoder(load_model(folder / "vae" / "vae.safetensors", ConvVAE), torch.device("cpu"), block=1)
        mdnrnn = load_model(folder / "rnn" / "rnn.safetensors", MDNRNN)
        self.memory, self.size = LSTMState(mdnrnn, 1, 1), mdnrnn.latent_size + 2 * mdnrnn.hidden_size
        self.env = environment()

    def play(self, seed, classifier=None, *, label=True):
        """Play an episode, with the planner if there is no classifier.

        Returns:
            Number of steps T, features (T / STRIDE, F) and costs of the actions (T / STRIDE, 3); the latter two are
            empty without labels.
        """
        rng, planner, known = np.random.default_rng(seed), Planner(), set()
        frame, _ = self.env.reset(seed=seed)
        self.memory.reset(1)
        steps, over, inputs, costs = 0, False, [], []
        while not over:
            mu, logvar = self.encoder(frame[None])
            z = mu + np.exp(0.5 * logvar) * rng.standard_normal(mu.shape, np.float32)
            features = np.concatenate([z[0], self.memory.c[0], self.memory.h[0]])
            if label:
                player, fireballs, _ = self.env.objects()
                known |= in_frame(player, fireballs)
            if label and (classifier is None or steps % STRIDE == 0):
                planner.age = planner.replan  # plans in each labelled step
                in_flight = [fireballs[name] for name in sorted(known & set(fireballs))]
                values = planner.action_values(player, np.reshape(in_flight, (-1, 4)))
                inputs.append(features)
                costs.append(values)
            action = ACTIONS[int(values.argmin())] if classifier is None else classifier.act(features)
            taken = np.array([[action]], np.float32)
            self.memory.step(np.zeros(1, np.int64), z, taken, np.array([steps == 0]))
            frame, _, terminated, truncated, _ = self.env.step(taken[0])
            steps, over = steps + 1, terminated or truncated
        return steps, inputs, costs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or pretrained world model")
    parser.add_argument("--hidden-units", type=int, default=0, help="0: linear")
    parser.add_argument("--iterations", type=int, default=14)
    parser.add_argument("--episodes", type=int, default=20, help="of an iteration")
    parser.add_argument("--games", type=int, default=100, help="of the score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    game, began = Game(options.run), time.perf_counter()
    classifier, inputs, costs = Classifier(game.size, options.hidden_units), [], []
    for iteration in range(options.iterations):
        lengths = []
        for episode in range(options.episodes):
            seed = episode_seed(options.seed, "imitate", iteration * options.episodes + episode)
            length, new_inputs, new_costs = game.play(seed, classifier if iteration else None)
            lengths.append(length)
            inputs += new_inputs
            costs += new_costs
        steps = LAST_STEPS if iteration + 1 == options.iterations else STEPS
        regret = classifier.fit(np.array(inputs), np.array(costs), steps)
        print(
            f"iteration {iteration}: {np.mean(lengths):.0f} steps on average, {len(inputs):,} labels, "
            f"regret {1000 * regret:.2f} per 1,000 steps, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    seeds = [episode_seed(options.seed, "imitate-score", episode) for episode in range(options.games)]
    scores = describe(np.array([game.play(seed, classifier, label=False)[0] for seed in seeds]))
    print(f"{scores.mean:.0f} +- {scores.std:.0f}, {format_interval(scores)}, n {len(seeds)}")
    if options.out:
        note = f"imitates a planner with privileged information; {options.hidden_units} hidden units"
        write_results(options.out, scores, options.seed, seeds, time.perf_counter() - began, note)


if __name__ == "__main__":
    main()
