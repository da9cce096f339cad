"""What every other package may use: validation, files, processes, threads, progress."""
