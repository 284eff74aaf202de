"""Order documents, deal them to sequences, and store them as tokens.

May import ``plugin``, ``io`` and ``errors``. Imports no torch.
"""
