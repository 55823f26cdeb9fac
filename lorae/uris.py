"""URIs for display, without their credentials."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

# A password may hold a bare / or @
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s:@]*:[^\s'\"]*|[^/\s]+)(?=@)")
_PARAMETERS = re.compile(r"(?<=[?&])(?!(?:region|scheme|endpoint_override)=)([^=&\s]+)=[^&\s'\"]*")
_PLAIN = ("region", "scheme", "endpoint_override")
_known: dict[str, str] = {}  # credentials with their delimiters -> replacement


def remember(uri: str) -> None:
    """Hide the credentials of this URI from now on, whatever characters they have: no pattern can tell where
    credentials with spaces or quotes end."""
    _, scheme, rest = uri.partition("://")
    place, _, query = rest.partition("?")
    user = place.rpartition("@")[0]
    found = {f"{user}@": "***@"} if scheme and user else {}
    for parameter in query.split("&") if scheme else []:
        name, equals, value = parameter.partition("=")
        if equals and value and name not in _PLAIN:
            found[parameter] = f"{name}=***"
    for secret, hidden in found.items():
        written = (secret, unquote(secret))
        forms = {form for text in written for form in (text, json.dumps(text)[1:-1], repr(text)[1:-1])}
        _known.update(dict.fromkeys(forms, hidden))


def shown(text: str) -> str:
    """The text with *** in place of user names, passwords and unknown parameters in its URIs.

    Any text that may hold a URI passes through here before it is printed, logged or recorded.
    """
    for secret, hidden in sorted(_known.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(secret, hidden)
    if "://" not in text:
        return text
    return _PARAMETERS.sub(r"\1=***", _CREDENTIALS.sub("***", text))
