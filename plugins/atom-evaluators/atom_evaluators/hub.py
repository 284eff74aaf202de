"""Use Hugging Face's caches alone if its Hub cannot be reached.

Its libraries repeat each request for minutes before they give up.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}


@contextmanager
def offline_if_needed() -> Iterator[str | None]:
    """Yield the address that cannot be reached, or None; in the first case, nothing is requested in
    the context."""
    import datasets
    from huggingface_hub import constants

    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    asked = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else url
    if _answers(asked):
        yield None
        return
    with ExitStack() as stack:
        for module in (constants, datasets.config):
            stack.enter_context(mock.patch.object(module, "HF_HUB_OFFLINE", True))
        yield url.netloc


def _answers(url: SplitResult) -> bool:
    try:
        port = url.port or _PORTS.get(url.scheme, 443)
        socket.create_connection((url.hostname or "", port), timeout=_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True
