"""The suite of each kind: ``suites/KIND.py`` holds a class ``CONFORMANCE`` of tests."""
