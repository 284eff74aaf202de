"""Train with torchtitan: the only room that imports it.

Imports all rooms but :mod:`atom.launch`, :mod:`atom.watch` and those above them.
:mod:`atom.titan.compat.device` must run before any module of torchtitan is imported.
"""
