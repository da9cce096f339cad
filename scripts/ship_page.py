"""Export the recordings and scores of a pretrained world model's page, with their hashes.

    python scripts/ship_page.py takecover

Writes to python/worldmodels/pretrained/NAME: a recording of the agent in the game and its scores (scores.json); for a
survival task also a controller evolved at temperature 0.1 with thresholded termination, which exploits errors of M,
with its recording and scores (exploited/). The agent's score in the game is that of
docs/results/NAME_pretrained_agent.json. Takes fifteen minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

import worldmodels as wm
from worldmodels.analysis.stats import describe
from worldmodels.data.records import Scores
from worldmodels.models.agent import Agent, Population, Recorder
from worldmodels.models.weights import save_tensors
from worldmodels.pipeline import tasks
from worldmodels.pretrained import HASHES, dream_settings, path, sha256
from worldmodels.rollout.environments import Environments, record
from worldmodels.rollout.players import episode_seed
from worldmodels.support.files import read_json, write_json
from worldmodels.web.film import write_film
from worldmodels.web.scores import SCORES, AgentScores, Summary

SEED, TEMPERATURE, TERMINATION = 2, 0.1, "threshold"
GENERATIONS, POPSIZE, EPISODES, SIGMA = 3, 64, 8, 0.1
GAMES, DREAMS, FILMS = 100, 100, 10


def evolve(name: str) -> np.ndarray:
    """Evolve the exploiting controller; returns the best candidate of the last generation."""
    dream = wm.Dream.pretrained(name, temperature=TEMPERATURE, termination=TERMINATION)
    es = wm.CMAES(np.zeros(dream.controller.size), SIGMA, popsize=POPSIZE, seed=SEED)
    for generation in range(1, GENERATIONS + 1):
        candidates = es.ask()
        seed = SEED * 1000 + generation
        returns = dream.rollout(candidates, EPISODES, seed=seed, common_random_numbers=True).returns.mean(axis=1)
        es.tell(candidates, -returns)
        print(f"generation {generation}: {returns.mean():.0f}, best {returns.max():.0f}", flush=True)
    return candidates[returns.argmax()].astype(np.float32)


def summary(scores: Scores) -> Summary:
    return Summary(mean=scores.mean, std=scores.std, ci95=scores.ci95, n=len(scores.scores))


def dream_scores(name: str, params: np.ndarray, **settings) -> Summary:
    dream = wm.Dream.pretrained(name, **settings)
    return summary(describe(dream.rollout(params[None], DREAMS, seed=1).returns[0].tolist()))


class Game:
    """The real game of a task's default preset."""

    def __init__(self, name: str) -> None:
        self.task = tasks.get(name)
        self.environment = tasks.preset(name, self.task.preset).environment

    def scores(self, agent: Agent) -> Summary:
        """Score the agent on the episodes of seed 0, those of `worldmodels play`."""
        found: dict[int, float] = {}
        player = Population(agent, agent.params[None])
        with Environments(self.environment, 16, rules=self.task.rules) as environments:
            environments.play(player, range(GAMES), seed=0, purpose="play", finished=found.__setitem__)
        return summary(describe([found[episode] for episode in range(GAMES)]))

    def film(self, agent: Agent, file: Path, score: Summary) -> None:
        """Record the episode whose return is closest to the mean, among the first episodes of ten seeds."""
        episodes, returns = [], []
        for seed in range(FILMS):
            recorder = Recorder(agent)
            first = episode_seed(seed, "play", 0)
            trace = record(self.environment, recorder, seed=seed, episode_seed=first, rules=self.task.rules)
            returns.append(sum(trace.rewards))
            episodes.append(np.stack(recorder.frames))
        chosen = min(range(FILMS), key=lambda seed: abs(returns[seed] - score.mean))
        frames = episodes[chosen]
        note = (
            f"The recorded game, of seed {chosen}, has {len(frames):,} steps: of {FILMS} games the closest to the mean."
        )
        print(write_film(file, frames, self.task.frames_per_second, note=note), file.stat().st_size, flush=True)


def main(name: str) -> None:
    to, game, agent = path(name), Game(name), Agent.pretrained(name)
    temperature = tasks.preset(name, game.task.preset).evolve.temperature
    results = Path(__file__).parents[1] / "docs" / "results" / f"{name}_pretrained_agent.json"
    measured = json.loads(results.read_text())["agent"]
    in_game = Summary.from_json({**measured, "n": measured.get("episodes") or len(measured["scores"])})
    termination = "sample" if dream_settings(name)["termination"] == "expected" else "threshold"
    in_dream = dream_scores(name, agent.params, temperature=temperature, termination=termination)
    AgentScores(dream=in_dream, game=in_game).write(to / SCORES)
    game.film(agent, to / "evaluate" / "film.webp", in_game)
    hashed(to, "evaluate/film.webp")
    if game.task.survival:
        exploit(name, game, agent)


def hashed(to: Path, *files: str) -> None:
    """Add files to the hashes of a pretrained world model."""
    write_json(to / HASHES, {**read_json(to / HASHES), **{file: sha256(to / file) for file in files}})


def exploit(name: str, game: Game, agent: Agent) -> None:
    to = path(name)
    agent.params = evolve(name)
    about = {
        "model": "_Weights",
        "config": vars(agent.controller),
        "temperature": TEMPERATURE,
        "termination": TERMINATION,
        "seed": SEED,
        "generations": GENERATIONS,
        "popsize": POPSIZE,
        "episodes": EPISODES,
        "sigma0": SIGMA,
        "command": f"python scripts/ship_page.py {name}",
    }
    folder = to / "exploited"
    save_tensors(folder / "controller.safetensors", {"params": torch.from_numpy(agent.params)}, about)
    write_json(folder / "controller.json", about)
    exploited = dream_scores(name, agent.params, temperature=TEMPERATURE, termination=TERMINATION)
    AgentScores(dream=exploited, game=game.scores(agent)).write(folder / SCORES)
    game.film(agent, folder / "film.webp", AgentScores.read(folder / SCORES).game)
    hashed(to, "exploited/film.webp", "exploited/controller.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
