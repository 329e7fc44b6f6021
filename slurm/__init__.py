"""Submitting and watching SLURM jobs."""
