"Sphinx settings; the sources are what build.py wrote to _docs/src"
import tomllib
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")

project = settings["DEFAULT"]["name"]
author = settings["DEFAULT"]["author"]
version = release = settings["DEFAULT"]["version"]
copyright = author

extensions = ["myst_nb", "sphinx.ext.mathjax"]
nb_execution_mode = "off"
nb_output_stderr = "remove"  # progress bars
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
mathjax_path = "mathjax.js"  # put into _docs/static by build.py; Sphinx loads it on pages with formulas only

smartquotes = False  # "karcher" and (..., n, k) in prose are code

html_theme = "furo"
html_title = project
html_baseurl = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Documentation"]
html_static_path = ["static", "../_docs/static"]
html_css_files = ["book.css"]
html_favicon = "static/icon.svg"
html_copy_source = html_use_index = False
html_show_sourcelink = False
