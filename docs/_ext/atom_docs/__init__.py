"""What the documentation is made with, beside Sphinx: the reference comes from the code."""
