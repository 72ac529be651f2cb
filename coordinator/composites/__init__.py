"""The aggregate: a composite with its factor family, effort sums, eligibility for work, leases, holds and statistics.

Whoever changes anything here holds the lock of the composite (architecture.md, Locks).
May import: base, numbers, effort.
"""
