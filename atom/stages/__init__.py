"""Run a recipe: a graph of stages, each of them a command of ATOM, from a corpus to a release.

A recipe is read (:mod:`declaration`), completed with variables (:mod:`composed`), checked
(:mod:`checks`), and run by processes of the ``atom`` command (:mod:`running`). Imports no torch.
"""
