"""Sphinx's settings for the guide; `python -m docs` runs it on a directory that it has put together."""

from importlib.metadata import version as version_of

project = "ECM Coordinator"
release = version = version_of("ecm-coordinator")
root_doc = "index"
source_suffix = {".md": "markdown"}

extensions = ["myst_parser"]
# Documents link to headings of one another, as they do where they are read without being built.
myst_heading_anchors = 3
highlight_language = "text"
# Two hyphens are the beginning of an option.
smartquotes = False
# Every reference that leads nowhere is a warning, and `python -m docs` fails on a warning.
nitpicky = True

html_theme = "furo"
html_title = f"ECM Coordinator {release}"
html_favicon = "../ingest/static/icon.svg"
# Sphinx's own pages about Python modules, and copies of the sources: nobody needs them here.
html_use_index = False
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
