"""`worldmodels play` and `worldmodels dream`: scores, recordings, and a window."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodels.cli.imports import import_torch
from worldmodels.cli.outputs import check_output
from worldmodels.envs.spec import EnvSpec
from worldmodels.pipeline import tasks
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.run import Run
from worldmodels.support.cluster import use_cluster
from worldmodels.support.validation import MAX_SEED, check_integer, check_positive, check_real

_MAX_EPISODES = 1_000_000  # of `play` and `dream`
_MAX_SCALE = 8  # of GIFs and MP4s; a panel is then 512 pixels wide


def show_agent(options: argparse.Namespace) -> None:
    """Play an agent in the game or in its dream; print the scores and write recordings."""
    check_integer("--episodes", options.episodes, 1, _MAX_EPISODES)
    check_integer("--seed", options.seed, 0, MAX_SEED)
    if "temperature" in options:
        check_real("--temperature", options.temperature, 0)
    check_positive("--seconds", options.seconds)
    check_integer("--scale", options.scale, 1, _MAX_SCALE)
    if options.gif:
        check_output("--gif", options.gif, ".gif")
    if options.video:
        check_output("--video", options.video, ".mp4")
        from worldmodels.analysis.animation import check_video

        check_video()
    if options.window and (options.gif or options.video or options.episodes > 1):
        raise ValueError("--window: expected no --gif, --video or --episodes, as you play until you close the window")
    folder, config = Run.agent(options.agent)
    import_torch()
    task = tasks.of(config)
    chosen = _dream_settings(options, config) if options.command == "dream" else {}
    if options.command == "play":
        task.require_environment("play")
    environment = replace(
        config.environment, **{key: vars(options)[key] for key in ("variant", "resolution") if key in options}
    )
    if options.window:
        _play_live(options, folder, task, chosen, environment)
        return

    from worldmodels.analysis import playback as show
    from worldmodels.analysis.animation import save_gif, save_video
    from worldmodels.envs.making import backend
    from worldmodels.rollout.environments import describe_environment

    if options.command == "dream":
        about = f"{options.agent}, in its dream at temperature {chosen['temperature']:g}{_dream_unit(folder, task)}"
        scores = show.dream_scores(folder, options.episodes, **chosen)
    else:
        about = f"{options.agent}, {describe_environment(environment)}"
        modules = tasks.modules(config)
        with use_cluster(vars(options).get("cluster")):
            scores = show.play(
                folder, environment, options.episodes, seed=options.seed, rules=task.rules, modules=modules
            )
    print(show.report_scores(about, scores))
    if not (options.gif or options.video):
        return
    if options.command == "dream":
        recording = show.record_dream(folder, **chosen, **task.look)
    else:
        recording = show.record_play(folder, environment, seed=options.seed, rules=task.rules, **task.look)
        if backend(environment) == "envpool":
            print("The recording is of Gymnasium's track, the score of EnvPool's.")
    if options.gif:
        save_gif(Path(options.gif), recording, seconds=options.seconds, scale=options.scale)
        print(f"GIF: {options.gif}")
    if options.video:
        save_video(Path(options.video), recording, seconds=options.seconds, scale=options.scale)
        print(f"MP4: {options.video}")


def _dream_settings(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Return the settings of a dream that is played step by step."""
    from worldmodels.pipeline.evaluators import sampled

    return {
        "temperature": vars(options).get("temperature", config.evolve.temperature),
        "seed": options.seed,
        "max_steps": config.evolve.max_steps,
        "termination": sampled(config.evolve.termination),
    }


def _dream_unit(folder: Path, task: tasks.Task) -> str:
    """Return a remark on the unit of the returns of a dream, empty if it is that of the task."""
    from worldmodels import load_world_model

    return "" if task.dream_has_reward(load_world_model(folder).mdnrnn) else ", in steps (M has no reward head)"


def _play_live(
    options: argparse.Namespace, folder: Path, task: tasks.Task, chosen: dict[str, Any], environment: EnvSpec
) -> None:
    """Let the user play in a window, and print the scores."""
    from worldmodels.support.display import check_display

    check_display("--window", "--gif FILE or --video FILE")

    from worldmodels.analysis import live
    from worldmodels.rollout.environments import describe_environment

    game: live.Game
    if options.command == "dream":
        name = f"{options.agent}, in its dream{_dream_unit(folder, task)}"
        game = live.DreamGame(folder, **chosen)
    else:
        environment = replace(environment, backend="gymnasium")
        name = f"{options.agent}, {describe_environment(environment)}"
        game = live.RealGame(folder, environment, seed=options.seed, rules=task.rules)
    for line in live.play(game, task.keys, name, task.frames_per_second):
        print(line)
