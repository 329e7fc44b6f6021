"""Sphinx: `make docs` builds the pages of this folder, and the settings from the code, into docs/_build/html."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from settings_reference import write_pages  # noqa: E402

project = "Tessera"
author = "The Tessera developers"
copyright = author
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "Tessera"
html_show_sphinx = False

write_pages(HERE / "settings")
