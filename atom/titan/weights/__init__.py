"""Load other models' weights, export a run's weights, and generate text.

Imports :mod:`atom.titan.hugging_face`, :mod:`atom.titan.trainer_config` and what is below them.
"""
