"""Sphinx settings: the guide, the glossary and the gallery. Builds without a network."""

import os

os.environ.setdefault("MPLBACKEND", "agg")

project = "sash"
author = "The sash authors"
copyright = "The sash authors"
extensions = ["myst_parser", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "images"]
html_theme = "alabaster"
html_theme_options = {"description": "Forecasts, fits and runs windowed workloads inside the memory you have.", "page_width": "1100px"}
html_show_sourcelink = False
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": ["../gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "show_signature": False,
    "plot_gallery": "True",
    # What a page shows it prints: the legend that a cell ends with is no answer.
    "capture_repr": (),
    # A page that raises fails the build: its answer would be missing.
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
}
