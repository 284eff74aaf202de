"""The conformance kit: tests that a component fulfils the contract of its kind.

An author writes one line in a test module of the plugin, and pytest collects the suite of its
kind::

    from atom.testing import conformance

    TestMyNet = conformance("architecture:my_net", dim=64, n_layers=2)

Facts that only the author knows follow it: ``conformance(…).having(unsupported={"cp": "it
scans"})``. The options of a kind are in the docstring of its suite, in :mod:`atom.testing.suites`.
"""

from atom.testing.conformance import conformance

__all__ = ["conformance"]
