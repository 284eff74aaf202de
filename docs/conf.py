"""How Sphinx builds the documentation: ``make docs``. Nothing is fetched."""

import sys
from pathlib import Path

import atom

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "ATOM"
author = "the ATOM contributors"
project_copyright = author
release = version = atom.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "atom_docs.command_reference",
    "atom_docs.config_reference",
    "atom_docs.conformance_reference",
    "atom_docs.corpora_reference",
    "atom_docs.engine_reference",
    "atom_docs.kernel_reference",
    "atom_docs.rendered",
    "atom_docs.repair_reference",
    "atom_docs.signature_reference",
]
# An example is a package, with files of its own; its README is a page.
exclude_patterns = ["_ext", "examples/*/[!R]*"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": False}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"ATOM {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
