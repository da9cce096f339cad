"""The experiments: stages that read and write a run folder, their settings, and studies of several runs."""
