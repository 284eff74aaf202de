"""Read, write and print what others may have written: bounded, link-free, no control characters.

Imports nothing of ATOM but its modules at the top. ``process`` calls a function in a forked child.
"""
