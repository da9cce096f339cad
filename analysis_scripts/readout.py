"""Ridge regression from the inputs of C, which is linear: helpers of the other scripts."""

from __future__ import annotations

import numpy as np
import torch

from worldmodels import ConvVAE
from worldmodels.models.encoder import Encoder
from worldmodels.models.lstm_state import LSTMState
from worldmodels.models.mdnrnn import MDNRNN
from worldmodels.models.weights import load_model

RIDGE = 10.0  # added to the diagonal of the features' products


def encode(run, frames):
    """Encode frames with the V of a run: mu and logvar, (N, Z) each."""
    encoder = Encoder(load_model(run / "vae" / "vae.safetensors", ConvVAE), torch.device("cpu"))
    parts = [encoder(part) for part in np.split(frames, range(512, len(frames), 512))]
    mu, logvar = map(np.concatenate, zip(*parts, strict=True))
    return mu, logvar


def features(run, mu, logvar, actions, lengths):
    """Compute possible inputs of C by name: mu, a sampled z, and z with M's LSTM state (h, or c and h)."""
    mdnrnn = load_model(run / "rnn" / "rnn.safetensors", MDNRNN)
    z = mu + np.exp(0.5 * logvar) * np.random.default_rng(0).standard_normal(mu.shape, np.float32)
    memory = LSTMState(mdnrnn, len(lengths))
    held = np.zeros((len(mu), 2 * mdnrnn.hidden_size), np.float32)
    starts = np.cumsum(lengths) - lengths
    for step in range(lengths.max()):
        alive = np.flatnonzero(lengths > step)
        rows = starts[alive] + step
        held[rows] = np.concatenate([memory.c[alive], memory.h[alive]], axis=1)
        memory.step(alive, z[rows], actions[rows], np.full(len(alive), step == 0))
    memories = {"z, h": held[:, mdnrnn.hidden_size :], "z, c, h": held}
    return {"mu": mu, "z": z} | {name: np.concatenate([z, part], axis=1) for name, part in memories.items()}


def fit(inputs, targets):
    """Fit the weights of a ridge regression; the last row is the intercept."""
    inputs = with_one(inputs)
    return np.linalg.solve(inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1]), inputs.T @ targets)


def with_one(inputs):
    return np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1).astype(np.float64)


def explained(inputs, targets, train):
    """Compute R^2 of every target on the held-out rows of a ridge regression."""
    weights, seen = fit(inputs[train], targets[train]), targets[~train]
    left = seen - with_one(inputs[~train]) @ weights
    return 1 - np.square(left).sum(axis=0) / np.square(seen - seen.mean(axis=0)).sum(axis=0)
