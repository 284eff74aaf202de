"""Sphinx directives and helpers that generate the reference from the code."""
