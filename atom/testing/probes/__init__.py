"""Detect the faults that ATOM repairs, in a process without repairs.

Each function returns whether the fault still exists. :mod:`.imports` is called first, because the
effects of an import can be observed only once per process.
"""
