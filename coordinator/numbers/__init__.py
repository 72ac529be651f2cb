"""Pure arithmetic on numbers: primality, splitting, expressions, factor trees, elliptic curves modulo a prime.

Nothing in here knows the database, effort or leases. May import: models.limits.
"""
