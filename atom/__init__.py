"""ATOM: a declarative, plugin-based framework for training truly open language models."""

__version__ = "0.1.0"
