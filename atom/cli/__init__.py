import importlib
import sys
import traceback

from atom.errors import UserError


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        return importlib.import_module(f"atom.cli.{argv[0]}").main(argv[1:])
    except UserError as e:
        print("atom:", e.sentence(getattr(e, "origin", None)), file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
