"""Benchmarks: ratios of interleaved runs on one machine, never bare seconds."""
