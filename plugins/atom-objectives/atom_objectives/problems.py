"""Define the error of a record that cannot be trained on."""


class BadRecordError(ValueError):
    """A record holds no conversation that can be trained on. The message says why."""
