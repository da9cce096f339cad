"""Utilities of every other package: validation, files, processes, threads, progress."""
