"""Handing out work: claims, the candidates that they choose from, measured speeds, reservations.

composites.lease_lifecycle changes a lease afterwards, because results and expiry change leases too.
May import: composites, base, numbers, effort.
"""
