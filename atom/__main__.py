"""``python -m atom`` is the ``atom`` command."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # The folder that the command was given in, whose files may be a stranger's.
    del sys.path[0]

from atom.cli import main

if __name__ == "__main__":
    sys.exit(main())
