"""The stages, one file each: every one reads the run folder and writes its own part of it."""
