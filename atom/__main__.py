"""``python -m atom`` is the ``atom`` command."""

import sys

from atom.cli import main

if __name__ == "__main__":
    sys.exit(main())
