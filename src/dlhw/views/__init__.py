"""Figures, comparisons of runs, and reports on classifiers."""
