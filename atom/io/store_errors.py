"""Tell from the errors of stores' packages why a request failed, and if it can succeed."""

from __future__ import annotations

import errno
import re

from atom.errors import one_line

_DENIED = re.compile(r"NoCredentials|DefaultCredentials|CredentialRetrieval|Gated|Unauthorized")
"""Names of exceptions of the stores' packages that say that access needs credentials."""

_FINAL = re.compile(r"ParamValidationError|InvalidURL|Certificate|TooManyRedirects")
"""Names of exceptions of the packages that say that a request will never succeed."""


def is_denied(error: Exception) -> bool:
    """Return whether a store denies access."""
    denied = isinstance(error, PermissionError) or status(error) in (401, 403)
    return denied or _DENIED.search(type(error).__name__) is not None


def is_missing(error: Exception) -> bool:
    """Return whether a web server's answer says that there is no such object."""
    return getattr(error, "status", None) in (404, 410) or "NotFound" in type(error).__name__


def is_final(error: Exception) -> bool:
    """Return whether a request will fail as often as it is repeated."""
    answered = status(error)
    refused = answered in range(400, 500) and answered not in (408, 409, 425, 429)
    missing = isinstance(error, FileNotFoundError)
    return refused or missing or _FINAL.search(type(error).__name__) is not None


def is_no_range(error: Exception) -> bool:
    """Return whether a store says that the object has no such bytes."""
    return status(error) == 416 or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def status(error: Exception) -> int | None:
    """Return the status of a server's answer."""
    found = getattr(error, "status", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    return found if isinstance(found, int) else None


def denial(scheme: str, error: Exception) -> str:
    """Return in words that access is denied, and what would give it."""
    how = {
        "s3": "credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile of the "
        "AWS tools; a public bucket needs none",
        "gs": "`gcloud auth application-default login`; a public bucket needs none",
        "hf": "HF_TOKEN or `hf auth login`, and the licence accepted on the Hub",
    }.get(scheme, "a URL that needs no login")
    return f"access is denied ({reason(error)}); valid: {how}"


def reason(error: Exception) -> str:
    """Return in words why a request failed."""
    name = type(error).__name__
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return "its server does not answer in time"
    if name == "TooManyRedirects":
        return "its server redirects again and again"
    if "Connect" in name or isinstance(error, ConnectionError):
        return "there is no connection to its server"
    if (answered := status(error)) is not None:
        return f"its server answers {answered}"
    said = error.strerror if isinstance(error, OSError) else None
    text = one_line(" ".join((said or str(error)).split()))
    return (text if len(text) <= 200 else f"{text[:200]}…") or name
