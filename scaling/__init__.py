"""Across runs: sweeps, fits, reports."""
