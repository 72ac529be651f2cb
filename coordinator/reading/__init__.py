"""Questions without changes: lists, one number, factors, clients, projects, health, metrics, invariants.

Nothing in here locks a row or commits.
May import: composites, base, numbers, effort.
"""
