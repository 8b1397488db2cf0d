"""Figures with intervals, whom they are of, and the baselines every method stands beside."""
