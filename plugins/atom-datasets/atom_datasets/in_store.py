"""Find the objects of URLs, and copy them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atom.errors import UserError
from atom.io import copied_urls, object_cache, objects
from atom.io.objects import Object, ObjectError
from atom.io.urls import Url, parse

_KEY = "dataset.path"


def copies(
    given: str,
    wanted: Callable[[Path], bool] | None,
    format: str,
    left_out: Callable[[str, str], None],
) -> list[Path]:
    """Return copies of the objects of a URL: of one, of a folder, or of those of a pattern.

    Args:
        given: the URL.
        wanted: whether an object of a folder has the ``format``; None: take all.
        format: its name.
        left_out: called with the kind and the name of what is left out.

    Raises:
        UserError: there is none, or the store does not answer.
    """
    url = parse(given, _KEY)
    with _refused(given):
        found, nothing = _found(url, wanted, format, left_out)
        if not found:
            raise UserError(nothing, key=_KEY, value=given)
        return [object_cache.shared().copy(each, _KEY) for each in found]


def copy_beside(path: Path, names: Iterable[str]) -> None:
    """Copy the objects of some names that lie beside the object of a copy; pass over a file."""
    if (url := copied_urls.url_of(path)) is None:
        return
    with _refused(str(url)):
        for name in names:
            object_cache.shared().copy_at(url.beside(name), _KEY)


def _found(
    url: Url,
    wanted: Callable[[Path], bool] | None,
    format: str,
    left_out: Callable[[str, str], None],
) -> tuple[list[Object], str]:
    """Return the objects of a URL, and the error text if there are none."""
    if (one := objects.find(url)) is not None:
        return [one], ""
    if url.is_web:
        return [], "there is no such object"
    if url.is_pattern:
        return objects.matching(url), "no object matches this pattern"
    root, found = len(url.parts()), []
    for each in objects.below(url):
        if hidden := next((n for n in each.url.parts()[root:] if n.startswith(".")), None):
            left_out("hidden files and folders", hidden)
        elif wanted is not None and not wanted(Path(each.url.name)):
            left_out(f"files that are not {format}", each.url.name)
        else:
            found.append(each)
    found.sort(key=lambda each: each.url.parts())
    kind = "object" if wanted is None else f"object of {format}"
    return found, f"there is no such object, and no {kind} below it"


@contextmanager
def _refused(given: str) -> Iterator[None]:
    try:
        yield
    except ObjectError as error:
        problem = str(error).removeprefix(f"{given}: ")
        raise UserError(problem, key=_KEY, value=given) from None
