"""The torchtitan room: the only part of ATOM that imports torch and torchtitan.

:mod:`atom.titan.device` comes first: it must run before any other torchtitan module is imported.
"""
