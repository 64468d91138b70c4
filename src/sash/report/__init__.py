"""Results in, reports out: text for the terminal, JSON, one HTML page. Arranges what was found; computes nothing."""

from sash.report._array_plan import plan_to_html
from sash.report._components import components_to_html
from sash.report._html import compare_to_html, to_html
from sash.report._json import from_json, to_json
from sash.report._text import plain_text, text

__all__ = ["compare_to_html", "components_to_html", "from_json", "plain_text", "plan_to_html", "text", "to_html", "to_json"]
