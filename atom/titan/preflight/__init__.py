"""Build what of a run can be built before there are ranks: for a start, a dry run, an explanation.

Imports :mod:`atom.titan.planning`, :mod:`atom.titan.checks` and what is below them.
"""
