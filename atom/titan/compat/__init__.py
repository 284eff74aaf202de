"""Repair what torchtitan, torch and their companions lack for ATOM.

:mod:`.register` lists every repair; :func:`atom.titan.boot.boot` applies those of a process.

Imports no other room of :mod:`atom.titan`.
"""
