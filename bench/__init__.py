"""Benchmarks: `python -m bench` measures the parts of the coordinator on this machine. Not in the wheel.

May import: everything but tests.
"""
