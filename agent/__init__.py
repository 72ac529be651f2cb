"""The client of a coordinator: it runs curves with GMP-ECM and sends their results.

The agent talks to the server over HTTP only. It may import `models.wire` and `models.limits`, and nothing else of the
server's packages. Start reading at cli.py (commands), worker_pool.py (`agent work`) and retrying.py (what is retried).
"""
