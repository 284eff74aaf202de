"""Read an array out of an object of a store, by ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from atom.errors import UserError
from atom.io import object_cache
from atom.io.objects import Object, ObjectError


class ObjectArray:
    """A one-dimensional array in an object; what is read is kept in the cache of objects.

    Args:
        found: the object; its size is a multiple of an element's.
        dtype: the type of an element.
        refused: returns the error of a store that does not answer.
    """

    def __init__(
        self, found: Object, dtype: np.dtype[Any], refused: Callable[[str], UserError]
    ) -> None:
        self._found = found
        self._dtype = dtype
        self._refused = refused

    @property
    def itemsize(self) -> int:
        return self._dtype.itemsize

    def __len__(self) -> int:
        return self._found.size // self.itemsize

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> npt.NDArray[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return an element, or a copy of a range of them.

        Raises:
            UserError: the store does not answer, or the object has changed.
        """
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            assert step == 1, "ranges alone are read"
            return self._read(begin, max(begin, end))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._read(place, place + 1)[0]

    def _read(self, begin: int, end: int) -> npt.NDArray[Any]:
        size = self.itemsize
        try:
            data = object_cache.shared().read(self._found, begin * size, end * size)
        except ObjectError as error:
            raise self._refused(str(error)) from None
        return np.frombuffer(data, dtype=self._dtype)
