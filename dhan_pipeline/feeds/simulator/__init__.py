"""Servers that speak the brokers' protocols over a synthetic market: for the demo, the tests and the benchmarks."""
