"""Observe runs from outside: list them, read their logs, compare them, write reports.

Reads run folders; imports no torch."""
