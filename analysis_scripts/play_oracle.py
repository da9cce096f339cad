"""What does a planner score in TakeCover that reads positions and velocities from the engine?

    python analysis_scripts/play_oracle.py --view screen --episodes 300 --seed 1 --out oracle.json

Rolls the fireballs forward and plans the actions by dynamic programming over the position and velocity of the player,
with the friction, acceleration and collision boxes of the engine. Prints the score, the termination rate (per 1,000
steps) by episode step and the hits.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # small matrices in two processes

import argparse
import collections
import functools
import itertools
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from engine import TakeCoverObjects
from results import write_results

from worldmodels.analysis.stats import describe, format_interval, table
from worldmodels.envs.take_cover import MAX_STEPS
from worldmodels.rollout.players import episode_seed

VIEWS = ("all", "screen", "frame")
AGES = (0, 100, 200, 300, 400, 600, 800, 1200, MAX_STEPS)
ACTIONS = (0, -1, 1)  # right moves towards smaller y

# The engine's rules, in units of the map and steps; they reproduce recorded episodes.
FRICTION, PUSH = 0.90625, 0.75  # v <- v - PUSH * action; y <- y + v; v <- FRICTION * v
LOW, HIGH = 16, 752  # y of the player between the walls
REACH = 22  # a fireball hits if its distance to the player is smaller in x and in y

# The plan. Without action the player comes to rest at y + GLIDE * v; an action moves this position by STRIDE, exactly.
GLIDE = 1 / (1 - FRICTION)
STRIDE = PUSH * GLIDE
SPEEDS = np.linspace(-7.5, 7.5, 31)  # lattice of v
REPLAN = 4  # steps between two plans; 1 in the view "frame", as a plan would be memory
HORIZON = 60  # steps of a plan; a fireball takes 45 to 80 from a monster to the player
MARGIN = 4.0  # a fireball this close to the box costs up to 1, like a hit
CLEARANCE, WIDTH = 0.02, 20.0  # cost next to the box, and the distance over which it falls by a factor of e
CENTRE = 0.002  # cost of a step at either end of the room


def interpolation():
    """Matrix (V, 3 V) from values at SPEEDS to the values after each action, interpolated linearly."""
    matrix = np.zeros((len(SPEEDS), 3 * len(SPEEDS)), np.float32)
    for column, (action, v) in enumerate(itertools.product(ACTIONS, SPEEDS)):
        index = np.interp(FRICTION * (v - PUSH * action), SPEEDS, np.arange(len(SPEEDS)))
        low = min(int(index), len(SPEEDS) - 2)
        matrix[low : low + 2, column] = low + 1 - index, index - low
    return matrix


class Planner:
    """Choose the action with the smallest sum of costs over the horizon.

    Args:
        horizon: Steps of a plan.
        replan: Steps between two plans.
    """

    after_action = interpolation()
    room_cost = (CENTRE * np.linspace(-1, 1, HIGH - LOW + 1) ** 2).astype(np.float32)
    outside = np.abs(np.arange(-2 * HIGH, 2 * HIGH + 1)) - REACH  # distances of y from a fireball, without the box
    ball_cost = np.clip(1 - outside / MARGIN, 0, 1) + CLEARANCE * np.exp(-np.maximum(outside, 0) / WIDTH)
    ball_cost = ball_cost.astype(np.float32)

    def __init__(self, horizon=HORIZON, replan=REPLAN):
        self.horizon, self.replan = horizon, min(replan, horizon)
        self.lattice = np.arange(-horizon, horizon + 1)[:, None] * STRIDE - GLIDE * SPEEDS  # (R, V) y minus self.rest
        self.age = self.replan

    def costs(self, x, fireballs):
        """Costs (horizon, HIGH - LOW + 1) of being at each integer y after each step."""
        costs = np.tile(self.room_cost, (self.horizon, 1))
        bx, by, vx, vy = np.reshape(fireballs, (-1, 4)).T[:, :, None]
        times = np.arange(1, 2 * self.horizon + 1) / 2  # the engine moves a fireball in two halves of a step
        balls, halves = np.nonzero(np.abs(bx + times * vx - x) < REACH + 1)
        at = np.clip(np.rint(by + times * vy).astype(int), 0, 2 * HIGH)[balls, halves]
        for half, centre in zip(halves, at, strict=True):
            costs[half // 2] += self.ball_cost[2 * HIGH + LOW - centre :][: costs.shape[1]]
        return costs

    def plan(self, player, fireballs):
        """Compute the values after each step, (3, V), (5, V) and so on: resting positions within reach, velocities."""
        x, y, _, v = player
        self.rest = y + GLIDE * v
        at = np.clip(np.rint(self.rest + self.lattice) - LOW, 0, HIGH - LOW).astype(int)
        costs = self.costs(x, fireballs)
        self.values = []  # of the last step first
        for step in range(self.horizon - 1, -1, -1):
            value = costs[step][at[self.horizon - step - 1 : self.horizon + step + 2]]
            if self.values:
                after = self.values[-1] @ self.after_action
                options = [
                    after[1 - action : 1 - action + len(value), index * len(SPEEDS) : (index + 1) * len(SPEEDS)]
                    for index, action in enumerate(ACTIONS)
                ]
                value += np.minimum(np.minimum(*options[:2]), options[2])
            self.values.append(value)
        self.values.reverse()
        self.age = 0

    def action_values(self, player, fireballs):
        """Compute the costs of ACTIONS, (3,).

        Args:
            player: x, y, vx, vy of the player.
            fireballs: (N, 4) the same of the fireballs.
        """
        if self.age == self.replan:
            self.plan(player, fireballs)
        _, y, _, v = player
        values = []
        for action in ACTIONS:
            row = self.age + 1 + round((y + GLIDE * v - self.rest) / STRIDE - action)
            value = self.values[self.age][min(max(row, 0), 2 * self.age + 2)]
            values.append(np.interp(FRICTION * (v - PUSH * action), SPEEDS, value))
        self.age += 1
        return np.array(values)

    def act(self, player, fireballs):
        """Choose -1 (left), 0 or 1 (right); arguments as for :meth:`action_values`."""
        return ACTIONS[int(np.argmin(self.action_values(player, fireballs)))]


def in_frame(player, fireballs):
    """Return the ids of the fireballs of radius 6 inside the screen's 90 degrees."""
    return {name for name, (x, y, _, _) in fireballs.items() if abs(y - player[1]) - 6 < x - player[0]}


@functools.cache
def environment():
    """Return the environment of this process."""
    return TakeCoverObjects()


def play(seed, view, horizon, noise, delay):
    """Play one episode: steps, whether it ended in death, hits, and hits by fireballs outside the view.

    Args:
        seed: Seed of the episode.
        view: One of VIEWS.
        horizon: Steps of a plan.
        noise: Standard deviation of errors of the fireballs' x and y, independent in each step.
        delay: Age of the positions and velocities that the planner is given, in steps.
    """
    rng, inputs = np.random.default_rng(seed), collections.deque(maxlen=delay + 1)
    env, planner, known = environment(), Planner(horizon, 1 if view == "frame" else REPLAN), set()
    env.reset(seed=seed)
    steps, hits, unknown_hits, over, health = 0, 0, 0, False, env.health()
    while not over:
        player, fireballs, _ = env.objects()
        seen = set(fireballs) if view == "all" else in_frame(player, fireballs)
        known = seen | known if view == "screen" else seen
        given = np.reshape([fireballs[name] for name in sorted(known & set(fireballs))], (-1, 4))
        given[:, :2] += noise * rng.standard_normal((len(given), 2))
        inputs.append((player, given))
        action = planner.act(*inputs[0])
        _, _, terminated, truncated, _ = env.step(np.array([action], np.float32))
        steps, over = steps + 1, terminated or truncated
        if env.health() < health:
            nearest = min(fireballs, key=lambda name: np.hypot(*np.subtract(fireballs[name], player)[:2]))
            hits, unknown_hits = hits + 1, unknown_hits + (nearest not in known)
        health = env.health()
    return steps, terminated, hits, unknown_hits


def hazard(steps, deaths):
    """Compute the termination rate (per 1,000 steps) from each of AGES to the next."""
    rates = []
    for low, high in itertools.pairwise(AGES):
        at_risk = np.clip(steps, low, high).sum() - low * len(steps)
        died = (deaths & (steps > low) & (steps <= high)).sum()
        rates.append(f"{1000 * died / at_risk:.2f}" if at_risk else "")
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--view",
        choices=VIEWS,
        default="all",
        help="fireballs given to the planner: all; those that have been on the screen; those in the current frame",
    )
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--horizon", type=int, default=HORIZON, help="steps of a plan")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the fireballs' positions")
    parser.add_argument("--delay", type=int, default=0, help="steps from the engine's state to the action")
    parser.add_argument("--out", help="JSON file of the results")
    options = parser.parse_args()
    seeds = [episode_seed(options.seed, "oracle", episode) for episode in range(options.episodes)]
    began = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        settings = {name: getattr(options, name) for name in ("view", "horizon", "noise", "delay")}
        played = list(pool.map(functools.partial(play, **settings), seeds))
    seconds = time.perf_counter() - began
    steps, deaths, hits, unknown = np.array(played).T
    scores = describe(steps)
    print(f"{scores.mean:.0f} +- {scores.std:.0f}, {format_interval(scores)}, n {len(steps)}, {deaths.sum()} deaths")
    print(f"{hits.sum()} hits, {unknown.sum()} of them by fireballs outside the view, {steps.sum():,} steps")
    rows = [["terminations per 1,000 steps", *hazard(steps, deaths.astype(bool))]]
    print(table(["from step", *map(str, AGES[:-1])], rows))
    print(f"{1000 * seconds * 2 / steps.sum():.2f} ms per step and process")
    if options.out:
        note = f"{hits.sum()} hits, {unknown.sum()} of them by fireballs outside the view"
        write_results(options.out, scores, options.seed, seeds, seconds, note)


if __name__ == "__main__":
    main()
