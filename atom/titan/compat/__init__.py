"""Repair what torchtitan and torch lack for ATOM, before anything else imports them.

Imports no other room of :mod:`atom.titan`.
"""
