"""The life of a result: the inbox that makes it durable, applying it alone or in a batch, its delivery attempts.

A submission is settled exactly once, as applied, duplicate, rejected or failed.
May import: residues, composites, base, numbers, effort.
"""
