"""Benchmarks of xi against its peers: `python -m benchmarks [relay|engines|footprint …] [--quick]`. No test judges their figures."""
