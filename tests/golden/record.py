"""Compare what ATOM does with what it did: golden values, one file of JSON each in this folder.

``make golden`` writes them anew. A change of structure leaves them as they are; a commit that
changes one says why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

WRITE = "ATOM_GOLDEN"
"""Set to ``write``, values are recorded and not compared; to ``all``, all of them are compared."""


class Record:
    """The golden values of one file, by name."""

    def __init__(self, name: str) -> None:
        self._path = Path(__file__).parent / f"{name}.json"

    def value(self, name: str, found: Any) -> Any:
        """Return the golden value of that name; when values are written, ``found`` becomes it.

        Raises:
            KeyError: there is none: ``make golden``.
        """
        values = json.loads(self._path.read_text()) if self._path.exists() else {}
        if os.environ.get(WRITE) == "write":
            values[name] = found
            lines = (f"{json.dumps(key)}: {json.dumps(values[key])}" for key in sorted(values))
            self._path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return values[name]
