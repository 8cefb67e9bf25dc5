"""Benchmarks: one file a question, peers in the same run. See README.md."""
