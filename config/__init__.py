"""Settings and logging of every process; `config.local` runs the servers and processes of one machine.

It is the lowest layer: it may import the standard library and other distributions, and no other package of this
project. `config.settings` reads the environment, `config.logging` writes log lines, and `config.search_path` keeps
foreign modules of the working directory from taking the place of ours.
"""
