"""Read, write and print untrusted files: bounded in size, without links or control characters.

Imports only ATOM's top-level modules. ``process`` calls a function in a forked child.
"""
