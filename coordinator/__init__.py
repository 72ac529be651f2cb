"""The rules of the coordinator, without Flask, Celery or HTTP status codes.

Eleven packages; each may import only packages below it (the second `layers` contract in setup.cfg):

    housekeeping                                periodic tasks, and the jobs
    administration                              what operators change
    results                                     applying what clients send
    residues | leases | loading | reading       stage 2 elsewhere; work; loading lists; read-only queries
    composites                                  the numbers, their factors and effort, their leases
    base | numbers | effort                     transactions; arithmetic; the mathematics of ECM
"""
