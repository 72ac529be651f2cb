"""Stage 1 by one client, stage 2 by another: uploads, save files and their storage, claims, completion, expiry.

The curves of a stage-1 attempt count as stage 1 until a stage-2 attempt of its residue supersedes them.
May import: composites, base, numbers, effort.
"""
