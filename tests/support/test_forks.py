"""Forked processes: refused by name where threads would be waited for, never hung, and usable where they can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from worldmodels.support import forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PARENT = """
import json, os, signal, sys, threading
import numpy as np, torch, worldmodels as wm
from worldmodels.support import forks
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.dream.gpu import TorchDream
torch.set_num_threads(2)
def use_threads():
    a = torch.ones(700, 700)
    return a @ a
frames = np.zeros((1, 64, 64, 3), np.uint8)
def act():
    wm.Agent.pretrained("takecover").act(frames)
def answer(work):
    try:
        said = work()
        return said if isinstance(said, str) else "works"
    except RuntimeError as error:
        return str(error)
def in_child(work):
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(into, answer(work).encode())
        os._exit(0)
    os.close(into)
    said = os.read(out, 65536).decode()
    return said if os.waitpid(child, 0)[1] == 0 else "hung"
"""
REFUSED = "this process was forked from one that had used the threads of OpenMP or PyTorch"


def run(code):
    done = subprocess.run([sys.executable, "-c", PARENT + code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_would_wait_for_lost_threads_is_refused():
    """Everything that computes with PyTorch's threads; with one thread all of it works."""
    said = run("""
agent = wm.Agent.pretrained("takecover")
vae, model = agent.vae, agent.mdnrnn
dream = wm.Dream.pretrained("takecover")
use_threads()
starts = np.zeros((2, 3, model.latent_size), np.float32)
doors = {
    "agent": act,
    "dream": lambda: wm.Dream.pretrained("takecover"),
    "built": lambda: wm.Dream(model, *starts, agent.controller),
    "encoder": lambda: Encoder(vae, torch.device("cpu")),
    "memory": lambda: LSTMState(model, 2),
    "gpu": lambda: TorchDream(model, *starts, agent.controller, device=torch.device("cpu")),
}
def all_doors(threads):
    torch.set_num_threads(threads)
    return json.dumps({name: answer(work) for name, work in doors.items()})
print(json.dumps([json.loads(in_child(lambda: all_doors(2))), json.loads(in_child(lambda: all_doors(1))),
                  in_child(lambda: agent.act(frames)),
                  in_child(lambda: dream.rollout(np.zeros((4, dream.controller.size)), num_threads=1, max_steps=5)),
                  in_child(lambda: dream.rollout(np.zeros((64, dream.controller.size)), num_threads=2))]))
""")
    refused, single, inherited, one_thread, two_threads = said
    for name, answer in refused.items():
        assert answer.startswith(REFUSED), (name, answer)
    assert set(single.values()) == {"works"}, single
    assert inherited == one_thread == "works"
    assert two_threads.startswith("this process was forked from one that had loaded worldmodels")


@pytest.mark.slow
@pytest.mark.parametrize("used", ["nothing", "another thread"])
def test_a_parent_whose_forking_thread_used_no_threads_is_no_hindrance(used):
    code = """
def in_a_thread():
    thread = threading.Thread(target=use_threads)
    thread.start(), thread.join()
"""
    code += "in_a_thread()\n" if used == "another thread" else ""
    code += "torch.set_num_threads(2)\nprint(json.dumps([in_child(act), in_child(act)]))\n"
    assert run(code) == ["works", "works"]


def test_a_thread_of_the_child_has_threads_of_its_own():
    code = """
use_threads()
def in_a_thread():
    said = []
    thread = threading.Thread(target=lambda: said.append(act()))
    thread.start(), thread.join()
    assert said
print(json.dumps(in_child(in_a_thread)))
"""
    assert run(code) == "works"


def test_a_fork_in_the_middle_of_a_call_leaves_no_lock_to_wait_for():
    """A thread steps, asks and rolls out for as long as the main thread forks."""
    said = run("""
from worldmodels.dream.env import DreamVectorEnv
agent = wm.Agent.pretrained("takecover")
starts = np.zeros((2, 3, agent.mdnrnn.latent_size), np.float32)
envs = DreamVectorEnv(agent.mdnrnn, *starts, num_envs=64, num_threads=1)
envs.reset(seed=0)
action = np.zeros((64, 1), np.float32)
es = wm.CMAES(np.zeros(300), 0.1, popsize=64, seed=1, num_threads=1, gap=0)
over = False
def busy(work):
    def loop():
        while not over:
            work()
    thread = threading.Thread(target=loop)
    thread.start()
    return thread
def generation():
    x = es.ask()
    es.tell(x, x[:, 0])
def native():
    state = stepper.get_state()
    stepper.set_state(state)
    stepper.step(1.0, action, True, True, 1)
stepper = envs._dreams._stepper
answers = {}
for name, work in {"environment": lambda: envs.step(action), "es": generation, "stepper": native}.items():
    over = False
    thread = busy(work)
    answers[name] = sorted({in_child(work)[:75] for _ in range(12)})
    over = True
    thread.join()
    work()
print(json.dumps(answers))
""")
    middle = "this process was forked while another thread was using this object, whose state is"[:75]
    for name, answers in said.items():
        assert set(answers) <= {"works", middle}, (name, answers)
    assert middle in said["environment"]


def test_an_error_of_a_signal_handler_leaves_the_lock_free():
    """It is raised while the lock is waited for, or right after it was acquired."""
    lock = forks.Lock()

    class Failing:
        def __init__(self, lock, acquires):
            self._lock, self._acquires = lock, acquires

        def __getattr__(self, name):
            return getattr(self._lock, name)

        def acquire(self):
            if self._acquires:
                self._lock.acquire()
            raise KeyboardInterrupt

    inner = lock._lock
    for acquires in (True, False):
        lock._lock = Failing(inner, acquires)
        with pytest.raises(KeyboardInterrupt), lock:
            pass
        lock._lock = inner
        with lock, pytest.raises(RuntimeError, match=r"^this object is in the middle of another call"), lock:
            pass
        assert not inner._is_owned()
