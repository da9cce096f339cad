"""Training of V and M: loop, optimization, distributed processes and settings."""
