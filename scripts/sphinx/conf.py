"""How Sphinx builds the site. `scripts/site.py` prepares the pages and runs it."""

import os

project = "clustercert"
version = release = os.environ["CLUSTERCERT_VERSION"]
extensions = ["myst_parser"]
templates_path = ["templates"]
root_doc = "index"
language = "en"
smartquotes = False  # messages stay as the programs print them
highlight_language = "text"
# The lexers of HCL and of terminals do not know all that these languages have, and say so.
suppress_warnings = ["misc.highlighting_failure"]

# The anchors that a forge makes of headings.
myst_heading_anchors = 6

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_js_files = ["search.js"]
html_theme_options: dict[str, list[str]] = {"top_of_page_buttons": []}
