"""Evaluation: metrics, protocols, statistics, and runs over benchmarks."""
