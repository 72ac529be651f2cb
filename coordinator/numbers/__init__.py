"""Pure arithmetic on numbers: primality, splitting, expressions, factor trees, elliptic curves modulo a prime.

No module here uses the database, effort or leases. May import: models.limits.
"""
