"""Launches by a scheduler."""

from __future__ import annotations

from collections.abc import Mapping


def check_launch(env: Mapping[str, str], *, on_cluster: bool) -> None:
    """Check that ``srun`` does not start this command several times: all but one would wait for the run folder.

    Args:
        env: Environment variables.
        on_cluster: Whether the command joins a cluster, whose nodes are the tasks of the step.

    Raises:
        ValueError: The command is one of several tasks of a step, without torchrun and without a cluster.
    """
    tasks = env.get("SLURM_STEP_NUM_TASKS", "1")
    if on_cluster or "MASTER_ADDR" in env or not tasks.isdecimal() or int(tasks) < 2:
        return
    raise ValueError(
        f"srun: expected one task, got {tasks} that all run this command (task {env.get('SLURM_PROCID', '?')} here); "
        "use `srun --ntasks=1`, for training `torchrun` (scripts/slurm/train.sbatch), for the other stages `ray "
        "symmetric-run ... --cluster auto` (scripts/slurm/run.sbatch)"
    )
