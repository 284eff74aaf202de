"""Build an architecture as the trainer does, on one rank and in this process.

Shape suffixes: B = sequences, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import UserError
from atom.plugin import PreparedTokenizer
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.testing import partners, runs

if TYPE_CHECKING:
    import torch


class Subject:
    """One architecture with its parameters, which can be built repeatedly.

    Attributes:
        parts: result of the architecture's ``build``.
        has_experts: whether a layer is a mixture of experts.
        tied: whether the embedding and the output layer share a weight.
        device: device of the models: a GPU if there is one.
    """

    def __init__(self, host: Host, architecture: dict[str, Any]) -> None:
        """Resolve the small run of ``architecture`` on one rank.

        Raises:
            UserError: the run would be refused.
        """
        from atom.titan.boot import settled

        self.device = settled()  # before any other import of torchtitan

        from torchtitan.models.common.moe import MoE

        from atom.titan.preflight.preflight import preflight
        from atom.titan.trainer_config import model_parts

        self._host = partners.with_partners(host)
        run = parse(runs.sections(architecture, device=self.device))
        self._selection = select(run, self._host)
        ready = preflight(
            run,
            self._selection,
            self._host,
            Path("conformance"),  # placeholder for the run folder; nothing is written
            tokenizer=PreparedTokenizer(vocab_size=partners.VOCAB_SIZE),
            joined=None,
        )
        self._run = ready.run
        self.parts = model_parts(self._selection, partners.VOCAB_SIZE, runs.SEQ_LEN)
        self.has_experts = any(True for _ in self.parts.model.traverse(MoE.Config))
        self.tied = bool(getattr(self.parts.model, "enable_weight_tying", False))
        if self.device == "cpu":
            _check_attention(self.config())

    def config(self) -> Any:
        """Return the model's config as in the trainer, with sharding and kernels set."""
        from torchtitan.config.override import apply_overrides

        from atom.titan.trainer_config import trainer_config

        config = trainer_config(self._run, self._selection, self._host, Path("conformance"))
        config.model_spec.model.update_from_config(config=config)
        apply_overrides(config.override, config)
        return config.model_spec.model

    def on_meta(self) -> torch.nn.Module:
        """Return the model on the meta device."""
        from atom.titan.saved_model import on_meta

        return on_meta(self.config())

    def model(self, *, filled_with: float | None = None) -> Any:
        """Return the model with the initial weights of seed 0.

        ``filled_with`` is the content of the memory before the weights are initialized.
        """
        import torch

        from atom.titan.train.initial_weights import seed_parameters

        model: Any = self.on_meta()
        seed_parameters(model, seed=0)
        model.to_empty(device=self.device)
        with torch.no_grad():
            if filled_with is not None:
                for tensor in model.state_dict().values():
                    if tensor.is_floating_point():
                        tensor.fill_(filled_with)
            model.init_weights(buffer_device=None)
        model.train()
        return model

    def tokens(self, sequences: int, length: int = runs.SEQ_LEN, seed: int = 0) -> torch.Tensor:
        """Return random ids of shape (sequences, length)."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        ids_BL = torch.randint(partners.VOCAB_SIZE, (sequences, length), generator=generator)
        return ids_BL.to(self.device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core within the context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_attention(config: Any) -> None:
    from torchtitan.models.common.attention import FlexAttention

    if any(
        type(node) is FlexAttention.Config for _, node, *_ in config.traverse(FlexAttention.Config)
    ):
        raise UserError(
            "flex attention has no backward pass on a CPU, and no installed package has a kernel "
            "of attention that runs there; install one that has"
        )


_subjects: dict[str, Subject] = {}


def subject(host: Host, architecture: dict[str, Any]) -> Subject:
    """Return the :class:`Subject` of an architecture, cached for this process."""
    key = json.dumps(architecture, sort_keys=True)
    if key not in _subjects:
        _subjects[key] = Subject(host, architecture)
    return _subjects[key]


def logits(model: Any, ids_BL: torch.Tensor, documents: tuple[int, ...] = ()) -> torch.Tensor:
    """Return the model's output of shape (B, L, V), called as the trainer does.

    Args:
        model: the model.
        ids_BL: the tokens.
        documents: lengths of the documents in every sequence, or () for one document. Positions
            restart at 0 in each, as :mod:`atom.titan.train.data` makes them.
    """
    import torch

    from atom.titan.weights import forward

    lengths = documents or (ids_BL.shape[1],)
    positions_L = torch.cat([torch.arange(length) for length in lengths])
    positions_BL = positions_L.expand(len(ids_BL), -1).contiguous().to(ids_BL.device)
    return forward.logits(model, ids_BL, positions_BL)


def loss(model: Any, ids_BL: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each next token."""
    import torch.nn.functional as F

    logits_BLV = logits(model, ids_BL[:, :-1])
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), ids_BL[:, 1:].flatten())


def loss_in_pieces(model: Any, ids_BL: torch.Tensor, pieces: int) -> torch.Tensor:
    """Return the mean cross-entropy of each next token, computed in chunks of the hidden states, as
    a run with ``loss.num_chunks`` does. The model returns hidden states from then on."""
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss

    labels_BL = ids_BL[:, 1:].contiguous()
    inner = CrossEntropyLoss.Config(global_vocab_size=partners.VOCAB_SIZE)
    computed = ChunkedLossWrapper.Config(num_chunks=pieces, loss_fn=inner).build()
    computed.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    found: torch.Tensor = computed(logits(model, ids_BL[:, :-1]), labels_BL)[0]
    return found / labels_BL.numel()


def state(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the model's state dict."""
    return copy.deepcopy({name: tensor.detach() for name, tensor in model.state_dict().items()})
