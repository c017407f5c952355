"""How the documentation is built: ``make docs`` (warnings are errors; the notebooks run from a clean kernel)."""

import os

project = "workbench"
author = "the workbench's authors"
copyright = "the workbench's authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**/first-hour/**", "**/feature-followed/**"]
html_theme = "furo"
html_title = "workbench"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
highlight_language = "none"  # blocks that do not say what they hold are commands and drawings

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "misc.highlighting_failure",  # blocks of shell output beside commands
    "ref.python",  # a word of a docstring that several classes have an attribute of
]

nb_execution_mode = os.environ.get("WORKBENCH_NOTEBOOKS", "force")  # "off": pages only
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "none"  # docstrings carry types with shapes and units
autodoc_member_order = "bysource"
autodoc_default_options = {
    "exclude-members": "set_fit_request, set_score_request, set_predict_request, set_transform_request"
}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_ivar = True
