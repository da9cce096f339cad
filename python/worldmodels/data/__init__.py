"""What lies on disk: episodes of frames, latents, weights."""
