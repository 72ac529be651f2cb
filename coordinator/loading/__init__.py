"""Loading lists of numbers: formats, validation, staging tables, new numbers, updates of known numbers.

A load is all or nothing. Numbers are computed on before anything is locked.
May import: composites, base, numbers, effort.
"""
