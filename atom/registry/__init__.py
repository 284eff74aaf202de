"""Find the installed plugins, decide which may be loaded, and open their components by name.

Imports :mod:`atom.recipe` and :mod:`atom.io`; no torch, no Hydra.
"""
