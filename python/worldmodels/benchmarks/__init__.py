"""Benchmarks of the dream: world models of known size, implementations in other libraries, and a table of both."""
