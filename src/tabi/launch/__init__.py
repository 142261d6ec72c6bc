"""A program behind a proxy of its own: what `tabi run` is made of.

`environment.py` has the variables that programs read, `trust.py` the files with authorities that these name,
`folder.py` the folder of these files, `proxy.py` the proxy in a thread, `command.py` the program and its signals,
`summary.py` what is said at the end.
"""
