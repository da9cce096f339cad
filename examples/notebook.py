# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evolve an agent inside a dream
#
# A world model of Doom's TakeCover: V encodes frames as latents z, M predicts the next latent, and C, a linear
# controller of 1,088 parameters, dodges fireballs. This tour plays a pretrained agent in M's dream, shows it and
# evolves a new C there. It takes a few minutes and needs neither a game nor a GPU.

# %% tags=["install"]
# From the first release on; before it, install from a clone of the repository:
# # %pip install "worldmodels-rl[takecover] @ git+REPOSITORY"
# %pip install "worldmodels-rl[takecover]"

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import worldmodels as wm
from worldmodels.analysis.animation import save_gif
from worldmodels.analysis.playback import record_dream

# QUICK=1 in the environment shortens every step, for the tests of the library
quick = os.environ.get("QUICK") == "1"

# %% [markdown]
# ## The pretrained agent in its dream
#
# `rollout` plays episodes of many controllers at once, in native code. Here it is one controller, in 16 episodes of at
# most 2,100 steps. The return is the number of steps survived.

# %%
dream = wm.Dream.pretrained("takecover", temperature=1.15)
agent = wm.Agent.pretrained("takecover")
result = dream.rollout(agent.params[None], episodes=4 if quick else 16, seed=0)
print(f"the pretrained agent survives {result.returns.mean():.0f} steps in the dream")

# %% [markdown]
# ## Watch it
#
# V decodes the latents of one dream into frames. The bar below the frame is C's action.

# %%
from worldmodels import pretrained

recording = record_dream(
    pretrained.folder("takecover"),
    temperature=1.15,
    seed=1,
    max_steps=60 if quick else 350,
    termination="sample",
    names=("left / right",),
    threshold=1 / 3,
    frames_per_second=35,
)
save_gif(Path("dream.gif"), recording, seconds=10, scale=2 if quick else 4)
Image(filename="dream.gif")

# %% [markdown]
# ## Evolve a controller
#
# CMA-ES samples candidates, the dream scores them, and the mean of the distribution moves toward the better ones. The
# first mean is zero: a C that never moves.

# %%
generations, popsize, episodes = (2, 8, 2) if quick else (10, 32, 8)
es = wm.CMAES(np.zeros(dream.controller.size), 0.1, popsize=popsize, seed=1)
best, mean = [], []
for generation in range(generations):
    candidates = es.ask()  # (popsize, 1088)
    survived = dream.rollout(candidates, episodes, seed=generation, common_random_numbers=True).returns.mean(axis=1)
    es.tell(candidates, -survived)  # CMA-ES minimizes
    best.append(survived.max())
    mean.append(survived.mean())
    print(f"generation {generation}: best {best[-1]:.0f}, mean {mean[-1]:.0f} steps survived")

# %%
plt.plot(best, label="best candidate")
plt.plot(mean, label="mean of the population")
plt.xlabel("generation")
plt.ylabel("steps survived in the dream")
plt.legend()
plt.show()

# %% [markdown]
# ## Compare on new episodes
#
# The scores above selected the candidates, so they are biased upwards. Scores on other seeds are not.

# %%
fresh = {"episodes": 8 if quick else 64, "seed": 1_000_000}
for name, params in {"zeros": np.zeros(dream.controller.size), "evolved": es.mean, "pretrained": agent.params}.items():
    returns = dream.rollout(np.asarray(params)[None], **fresh).returns
    print(f"{name:>10}: {returns.mean():.0f} steps survived in the dream")

# %% [markdown]
# Next: `worldmodels run takecover` evolves C for longer and plays 100 real games with it.
