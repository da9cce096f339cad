"""Statistics, quality of V and M, figures and recordings."""
