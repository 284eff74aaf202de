"""Define the contract of an operation: its inputs, its node, and how to call it.

A kernel replaces a node in torchtitan's config tree. To compare two kernels of an operation, the
kit makes the tree of a model of the given sizes, applies the kernel's override to the node, and
calls the module that the node builds. The contracts are in
:mod:`atom.titan.contracts.operations`.

Shape suffixes: B = sequences, L = tokens per sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atom.titan.contracts.sizes import Sizes

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


ADAMW: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.05}
"""Optimizer settings of the kit's trees: large, so that a few steps show the effect of each."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The contract of one operation.

    Attributes:
        node: returns the operation's node in the tree of a ``Trainer.Config``.
        inputs: makes the floating-point inputs for given sizes, by name.
        call: calls the built module on such inputs. The inputs have the dtype under test and any
            strides; the third argument is the node.
        formula: computes the operation from its definition: the measure of the reference kernel.
            Its arguments are the module's weights by name, the inputs, and the sizes.
        build: builds the node. If building needs the inputs, this returns None and ``call`` builds
            the node.
        differentiable: whether it has a backward pass.
        family: model family of the kit that has the node: a key of
            :data:`atom.titan.contracts.small_models.MODELS`.
        float64: whether the reference computes float64 inputs in float64. Some of torchtitan's
            modules always compute in float32.
    """

    node: Callable[[Any], Any]
    inputs: Callable[[Sizes, Callable[..., torch.Tensor]], Tensors]
    call: Callable[[Any, Tensors, Any, Sizes], torch.Tensor]
    formula: Callable[[Tensors, Tensors, Sizes], torch.Tensor]
    family: str = "llama"
    float64: bool = True
    build: Callable[[Any], Any] = lambda node: node.build()
    differentiable: bool = True


def as_weight(numbers: torch.Tensor) -> torch.Tensor:
    """Scale normal numbers to the size of a model's weights.

    A product over the last dimension is then as large as its input. At real widths, products of
    larger weights overflow float16, and saturate a softmax: its gradient then amplifies the
    rounding of bfloat16.
    """
    return numbers * numbers.shape[-1] ** -0.5 if numbers.dim() > 1 else numbers


def ids(sizes: Sizes, device: Any, seed: int = 0) -> torch.Tensor:
    """Return token ids of shape (B, L)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (sizes.batch, sizes.length)
    return torch.randint(sizes.vocab_size, shape, generator=generator).to(device)


def positions(sizes: Sizes, device: Any) -> torch.Tensor:
    """Return positions of shape (B, L), counted from 0 in each document."""
    import torch

    lengths = sizes.documents or (sizes.length,)
    positions_L = torch.cat([torch.arange(length) for length in lengths])
    return positions_L.expand(sizes.batch, -1).contiguous().to(device)


def tree(family: str, sizes: Sizes) -> Any:
    """Return a ``Trainer.Config`` with a model of one layer of ``sizes``, with its sharding set.

    ``family`` is one of :data:`atom.titan.contracts.small_models.MODELS`.
    """
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.components.optimizer import default_adamw
    from torchtitan.protocols.model_spec import ModelSpec
    from torchtitan.trainer import Trainer

    from atom.titan import translate
    from atom.titan.contracts.small_models import MODELS

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
        training=translate.config(
            "training", seq_len=max(sizes.length, 2), disable_cuda_graphs=True
        ),
    )
    built.update_from_config(config=config)
    return config


def layer(config: Any) -> Any:
    """Return the only layer of a tree."""
    return config.model_spec.model.layers[0]
