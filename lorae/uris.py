"""URIs as they may be shown: without the credentials in them."""

from __future__ import annotations

import re

# A password may hold a bare / or @
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s:@]*:[^\s'\"]*|[^/\s]+)(?=@)")
_PARAMETERS = re.compile(r"(?<=[?&])(?!(?:region|scheme|endpoint_override)=)([^=&\s]+)=[^&\s'\"]*")


def shown(text: str) -> str:
    """The text with *** in place of user names, passwords and unknown parameters in its URIs.

    Everything that is printed, logged or recorded and may hold a URI passes through here.
    """
    if "://" not in text:
        return text
    return _PARAMETERS.sub(r"\1=***", _CREDENTIALS.sub("***", text))
