"""Benchmarks that compare with other software; imports nothing by itself."""
