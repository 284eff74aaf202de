"""Show the faults that ATOM repairs, in a process where nothing is repaired.

Each function returns whether the fault is still there. :mod:`.imports` is called first, since what
a process imports can be seen once only.
"""
