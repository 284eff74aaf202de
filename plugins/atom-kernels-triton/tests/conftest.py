"""What holds for the package's tests."""

import os

# Tests are of many widths, and to try the launches of each would take a GPU minutes.
os.environ.setdefault("ATOM_TRITON_TUNE", "0")
