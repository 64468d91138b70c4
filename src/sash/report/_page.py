"""One page that holds everything it needs: styles, script, data."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from sash.errors import InputError, SashError


def page(title: str, sections: Iterable[str], data: object = None, script: str | None = None) -> str:
    """Sections of HTML, and the data and script that draw their charts, if there are any; raises `SashError` where these lack plotly."""
    plotly, own = (_plotly(), _asset(script)) if script is not None else ("", "")
    return Template(_asset("page.html")).substitute(
        title=f"{escape(title)} – sash",
        # Only these two scripts run, whatever a name in the data may hold; and the page can load nothing.
        script_hashes=" ".join(_hash(one) for one in (plotly, own)),
        style=_asset("page.css"),
        body="\n".join(sections),
        series=_embedded(data),
        plotly=plotly,
        script=own,
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SashError("An HTML report needs plotly, which is not installed: pip install 'sash[report]'.") from error
    return get_plotlyjs()


def _asset(name: str) -> str:
    return files("sash.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _embedded(data: object) -> str:
    # A script element ends at the first "</script" whatever its type, so no "<" may stand in the data.
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def replace(path: Path, page: str) -> None:
    """Write a page in one step, or not at all; raises `InputError` where the path cannot be written."""
    # Not tempfile: its files are for their owner alone, and a report is made to be passed on.
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        # A lone surrogate in a module's name is no valid text: it is written as a character reference.
        part.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}. Give a file in a folder that exists.") from error
    finally:
        with suppress(OSError):
            part.unlink()
