"""Sweeps, which are many runs from one command: the grid of jobs, and a launcher that trains jobs at once."""
