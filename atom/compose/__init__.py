"""Compose a run with Hydra from the groups of all plugins and the overrides of a command line.

Imports :mod:`atom.run_dir`, :mod:`atom.registry`, :mod:`atom.recipe` and :mod:`atom.io`; no torch.
Only this room and the commands that call it import Hydra and OmegaConf.
"""
