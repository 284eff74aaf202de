"""Train with torchtitan: the only room that imports torchtitan.

Imports all rooms but :mod:`atom.launch`, :mod:`atom.watch` and those above them.
:func:`atom.titan.boot.boot` must be called before any module of torchtitan is imported.
"""
