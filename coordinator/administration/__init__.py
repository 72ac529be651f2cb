"""What operators change: edits, deletions, projects, dead letters, client keys, recalculation of effort.

Every change is one unit of work with its audit row in it.
May import: results, residues, composites, base, numbers, effort.
"""
