"""Rollouts of policies and agents in real environments, and evaluators of controllers."""
