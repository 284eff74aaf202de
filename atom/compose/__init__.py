"""Compose a run with Hydra from the groups of all plugins and the words of a command line.

Imports :mod:`atom.run_dir`, :mod:`atom.registry`, :mod:`atom.recipe` and :mod:`atom.io`; no torch.
The only room that imports Hydra and OmegaConf, beside the commands that run it.
"""
