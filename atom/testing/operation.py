"""What the contract of an operation is made of: its sizes, its node, how it is called.

A kernel takes the place of a node in torchtitan's config tree. To compare two kernels of an
operation, the kit makes the tree of a model of the sizes wanted, lets the kernel's override replace
the node, and calls what the node builds. The contracts are in :mod:`atom.testing.operations`.

Shape suffixes: B = sequences, L = tokens a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one comparison. ``documents`` are the lengths of the documents in a sequence;
    () for one document. ``window`` is that of attention, in tokens; 0 for none."""

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
        """Those that a kernel's needs may bound, as :class:`atom.kernels.Situation` has them."""
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


ADAMW: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.05}
"""Of the optimizer in the kit's trees: large, so that a few steps show what each does."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The contract of one operation.

    Attributes:
        node: the operation's node in the tree of a ``Trainer.Config``.
        inputs: makes the floating-point inputs of the sizes given, by name.
        call: calls what the node builds on such inputs. The inputs come in the dtype under test
            and with any strides; the third argument is the node.
        formula: what it computes, written out: the measure of the reference kernel. Its arguments
            are the module's weights by name, the inputs, and the sizes.
        build: builds the node. One that cannot be built without the inputs is built by ``call``:
            then this returns None.
        differentiable: whether it has a backward pass.
        family: of the kit's model that the node is in: a key of
            :data:`atom.testing.partners.model.MODELS`.
        float64: whether the reference computes in float64 what it is given in float64. Some of
            torchtitan's own modules compute in float32 whatever they get.
    """

    node: Callable[[Any], Any]
    inputs: Callable[[Sizes, Callable[..., torch.Tensor]], Tensors]
    call: Callable[[Any, Tensors, Any, Sizes], torch.Tensor]
    formula: Callable[[Tensors, Tensors, Sizes], torch.Tensor]
    family: str = "llama"
    float64: bool = True
    build: Callable[[Any], Any] = lambda node: node.build()
    differentiable: bool = True


def ids(sizes: Sizes, device: Any, seed: int = 0) -> torch.Tensor:
    """Return token ids of shape (B, L)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (sizes.batch, sizes.length)
    return torch.randint(sizes.vocab_size, shape, generator=generator).to(device)


def positions(sizes: Sizes, device: Any) -> torch.Tensor:
    """Return positions of shape (B, L), which count from 0 in each document."""
    import torch

    lengths = sizes.documents or (sizes.length,)
    positions_L = torch.cat([torch.arange(length) for length in lengths])
    return positions_L.expand(sizes.batch, -1).contiguous().to(device)


def tree(family: str, sizes: Sizes) -> Any:
    """Return a ``Trainer.Config`` with a model of one layer of ``sizes``, its sharding set.

    ``family`` is one of :data:`atom.testing.partners.model.MODELS`.
    """
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.components.optimizer import default_adamw
    from torchtitan.config import TrainingConfig
    from torchtitan.protocols.model_spec import ModelSpec
    from torchtitan.trainer import Trainer

    from atom.testing.partners.model import MODELS

    built = MODELS[family](
        vocab_size=sizes.vocab_size,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads,
        head_dim=sizes.head_dim,
        hidden_dim=sizes.hidden_dim,
        n_layers=1,
    )
    config = Trainer.Config(
        model_spec=ModelSpec(
            name="conformance",
            flavor=str(sizes),
            model=built,
            parallelize_fn=lambda model, **_: model,
            pipelining_fn=None,
            post_optimizer_build_fn=None,
            state_dict_adapter=None,
        ),
        loss=ChunkedLossWrapper.Config(
            num_chunks=1 if sizes.length % 2 else 2,
            loss_fn=CrossEntropyLoss.Config(global_vocab_size=sizes.vocab_size),
        ),
        optimizer=default_adamw(**ADAMW),
        checkpoint=CheckpointManager.Config(initial_load_model_only=False),
        training=TrainingConfig(seq_len=max(sizes.length, 2), disable_cuda_graphs=True),
    )
    built.update_from_config(config=config)
    return config


def layer(config: Any) -> Any:
    """Return the one layer of a tree."""
    return config.model_spec.model.layers[0]
