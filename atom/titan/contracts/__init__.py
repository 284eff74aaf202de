"""State what each operation with kernels computes, and compare kernels with it.

Imports :mod:`atom.kernels`. No pytest: benches and the conformance kit use it alike.
"""
