"""Loading lists of numbers: formats, validation, staging tables, new numbers, updates of known numbers.

A load is all or nothing. All arithmetic is done before anything is locked.
May import: composites, base, numbers, effort.
"""
