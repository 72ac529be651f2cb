"""What runs by the clock or from the job queue: lease expiry, republishing, retention, the job runner.

Everything here may run twice, late, or beside itself.
May import: administration, results, residues, composites, base, numbers, effort.
"""
