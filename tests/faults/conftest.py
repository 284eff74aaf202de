from damaged import damaged  # noqa: F401
