"""Repair torchtitan, torch and their dependencies for ATOM.

:mod:`.register` lists every repair; :func:`atom.titan.boot.boot` applies those of a process.

Imports no other room of :mod:`atom.titan`.
"""
