"""Define the sizes of a comparison of kernels."""

from __future__ import annotations

from dataclasses import dataclass

EXPERTS = 4
TOP_K = 2


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one comparison.

    ``documents`` are the lengths of the documents in a sequence, () for one document. ``window`` is
    the attention window in tokens, 0 for none.
    """

    batch: int = 2
    length: int = 32
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    hidden_dim: int = 96
    vocab_size: int = 128
    documents: tuple[int, ...] = ()
    window: int = 0

    @property
    def dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def rows(self) -> int:
        return self.batch * self.length

    @property
    def needed(self) -> dict[str, tuple[int]]:
        """Return the sizes that a kernel's needs may limit.

        :class:`atom.kernels.choose.Situation` has them, too.
        """
        return {
            "dim": (self.dim,),
            "head_dim": (self.head_dim,),
            "hidden_dim": (self.hidden_dim,),
            "vocab_size": (self.vocab_size,),
            "window": (self.window,),
        }

    def __str__(self) -> str:
        return (
            f"B {self.batch} L {self.length} N {self.n_heads}/{self.n_kv_heads} "
            f"H {self.head_dim} F {self.hidden_dim} V {self.vocab_size}"
        ) + (f" window {self.window}" if self.window else "")


EIGHT_BILLION = Sizes(
    length=4096, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14336, vocab_size=128256
)
"""The sizes of a model of 8 billion parameters, on two sequences."""

REGULAR = (
    Sizes(),
    Sizes(batch=1, length=128, n_kv_heads=4, head_dim=32, documents=(27, 80, 21)),
    Sizes(
        length=64,
        n_heads=8,
        n_kv_heads=1,
        hidden_dim=256,
        vocab_size=256,
        documents=(32, 32),
        window=9,
    ),
)
ODD = (
    Sizes(batch=1, length=1, n_heads=1, n_kv_heads=1, head_dim=2, hidden_dim=1, vocab_size=3),
    Sizes(batch=3, length=17, n_heads=3, n_kv_heads=3, head_dim=10, hidden_dim=33, vocab_size=101),
    Sizes(length=131, n_heads=5, n_kv_heads=1, head_dim=26, hidden_dim=67, documents=(1, 129, 1)),
)
