"""Draw what V and M have learned: a dream, the effect of single latents, and M's prediction for one step.

    python examples/look_inside.py --out inside.png                     the pretrained world model
    python examples/look_inside.py --world runs/quick --out inside.png  your own

Time: 8 seconds. Writes one picture and prints the length of the dream and the dimensions of z that are shown. Rows from
above: frames of one dream, decoded by V; the first frame while one dimension of z varies from -3 to 3 (the dimensions
with the largest effect); for these, M's density of the next value and the value that was sampled.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

import worldmodels as wm
from worldmodels import pretrained
from worldmodels.models.vae import decode
from worldmodels.models.weights import load_model

mpl.use("Agg")
from matplotlib import pyplot as plt

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--world", default="takecover", help="pretrained world model, or run folder")
options.add_argument("--temperature", type=float, default=1.0, help="temperature of the dream")
options.add_argument("--steps", type=int, default=200, help="longest dream")
options.add_argument("--step", type=int, default=20, help="step whose prediction is drawn")
options.add_argument("--latents", type=int, default=4, help="number of dimensions of z that are shown")
options.add_argument("--out", type=Path, default=Path("inside.png"), help="picture to write")
chosen = options.parse_args()

folder = pretrained.resolve(chosen.world)
vae = load_model(folder / "vae" / "vae.safetensors", wm.ConvVAE)
world = wm.load_world_model(folder)
mdnrnn = world.mdnrnn

# A dream with zero parameters of C: z (T + 1, Z), action (T, A).
controller = wm.Controller(mdnrnn.latent_size, mdnrnn.hidden_size, mdnrnn.action_size)
dream = wm.Dream(*world, controller, temperature=chosen.temperature, max_steps=chosen.steps)
trace = dream.trace(np.zeros(controller.size), seed=2)
length = len(trace.action)

# V: dimensions of z that change the decoded frame most, starting at the dream's first latent.
values = np.linspace(-3, 3, 12, dtype=np.float32)
traversals = np.repeat(trace.z[None, :1], mdnrnn.latent_size, 0).repeat(len(values), 1)  # (Z, 12, Z)
for latent in range(mdnrnn.latent_size):
    traversals[latent, :, latent] = values
ends = decode(vae, traversals[:, [0, -1]].reshape(-1, mdnrnn.latent_size)).astype(np.float32)
change = np.abs(ends[0::2] - ends[1::2]).mean(axis=(1, 2, 3))
liveliest = np.argsort(-change)[: chosen.latents]

# M: teacher-forced over the dream up to the step, then its mixture (Z, K) for the next latent.
step = min(chosen.step, length - 1)
restart = torch.zeros(1, step + 1)
restart[0, 0] = 1
with torch.inference_mode():
    out, _ = mdnrnn(
        torch.from_numpy(trace.z[None, : step + 1]), torch.from_numpy(trace.action[None, : step + 1]), restart
    )
logmix, mean, logstd = (part[0, -1].numpy() for part in (out.logmix, out.mean, out.logstd))

rows = 1 + 2 * len(liveliest)
figure = plt.figure(figsize=(12, 1.15 * rows + 0.5), layout="constrained")
grid = figure.add_gridspec(rows, len(values))
shown = np.linspace(0, length, len(values)).astype(int)
for column, (at, picture) in enumerate(zip(shown, decode(vae, trace.z[shown]), strict=True)):
    axes = figure.add_subplot(grid[0, column])
    axes.imshow(picture)
    axes.set_title(f"step {at}", fontsize=8)
    axes.set_axis_off()
for row, latent in enumerate(liveliest):
    for column, picture in enumerate(decode(vae, traversals[latent])):
        axes = figure.add_subplot(grid[1 + row, column])
        axes.imshow(picture)
        axes.set_title(f"z{latent} = {values[column]:.1f}", fontsize=8)
        axes.set_axis_off()
    axes = figure.add_subplot(grid[1 + len(liveliest) + row, :])
    std = np.exp(logstd[latent])
    low, high = (mean[latent] - 4 * std).min(), (mean[latent] + 4 * std).max()
    x = np.linspace(low, high, 400)[:, None]
    parts = np.exp(logmix[latent] - 0.5 * ((x - mean[latent]) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    axes.plot(x, parts, color="0.7", linewidth=0.8)
    axes.plot(x, parts.sum(axis=1), color="tab:blue")
    axes.axvline(trace.z[step + 1, latent], color="tab:orange", linestyle="--")
    axes.set_yticks([])
    axes.set_ylabel(f"z{latent}", rotation=0, labelpad=14)
axes.set_xlabel(f"M's mixture for the latent after step {step} (grey: components) and the sampled value (dashed)")
figure.savefig(chosen.out, dpi=110)

print(f"a dream of {length} steps; largest effect on the frame: z{', z'.join(map(str, liveliest))}")
print(f"mean weight of the most probable component at step {step}: {np.exp(logmix).max(axis=1).mean():.2f}")
print(f"wrote {chosen.out}")
