"""Define what each operation computes, and compare kernels with it.

Imports :mod:`atom.kernels`. No pytest: benchmarks and the conformance kit both use this room.
"""
