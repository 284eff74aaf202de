"""Let the tests import ``optimizer_references.py``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
