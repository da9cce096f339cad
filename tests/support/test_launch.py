"""Launches by srun."""

from __future__ import annotations

import pytest

from worldmodels.support.launch import check_launch

TASKS = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


def test_several_tasks_of_a_step_are_told_what_to_use():
    with pytest.raises(ValueError, match=r"^srun: expected one task, got 4 that all run this command \(task 2 here\)"):
        check_launch(TASKS, on_cluster=False)


@pytest.mark.parametrize(
    ("env", "on_cluster"),
    [
        ({}, False),
        (TASKS, True),  # ray symmetric-run
        ({**TASKS, "MASTER_ADDR": "node1"}, False),  # torchrun
        ({**TASKS, "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # a batch script, of which there is one
        ({"SLURM_STEP_NUM_TASKS": "many"}, False),
    ],
)
def test_others_run(env, on_cluster):
    check_launch(env, on_cluster=on_cluster)
