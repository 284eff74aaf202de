"""Load the weights of other models, export a run's, and generate text with them.

Imports :mod:`atom.titan.hugging_face`, :mod:`atom.titan.trainer_config` and what is below them.
"""
