"""Every SQL statement of the project, and nothing else."""
