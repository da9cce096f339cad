"""Data sets on disk and in memory: episodes, frames, latents, packed sequences."""
