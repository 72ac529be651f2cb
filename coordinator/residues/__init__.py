"""Stage 1 by one client, stage 2 by another: uploads, save files and their storage, claims, completion, expiry.

A residue stands for the curves of its stage-1 attempt until a stage-2 attempt supersedes them.
May import: composites, base, numbers, effort.
"""
