"""Episodes: one loop for real environments, and evaluators of controllers."""
