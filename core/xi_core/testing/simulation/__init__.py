"""Whole clusters, simulated from a seed: the real lifecycle between workers that crash, links that break and users who change their minds.

`python -m xi_core.testing.simulation --seeds 1000 --scheduler NAME` tries any scheduler that is installed.
"""
