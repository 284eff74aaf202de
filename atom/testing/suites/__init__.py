"""The suites of all kinds: ``suites/KIND.py`` defines a test class ``CONFORMANCE``."""
