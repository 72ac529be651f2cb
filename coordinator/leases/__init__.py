"""Handing out work: claims and the candidates that they choose from, measured speeds, reservations.

The life of a lease after that is in composites.lease_lifecycle, because results and expiry change leases too.
May import: composites, base, numbers, effort.
"""
