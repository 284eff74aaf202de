"""Build parts of a run before ranks exist: for a start, a dry run, or an explanation.

Imports :mod:`atom.titan.planning`, :mod:`atom.titan.checks` and what is below them.
"""
