"""Multi-token prediction is that of the paper, with the blocks of ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.config import ParallelismConfig

from atom.errors import UserError
from atom.registry.host import Host
from atom.testing import models, runs
from atom.titan.weights.forward import logits
from atom_deepseek import mtp
from atom_deepseek.mtp import PredictingLoss, PredictingModel

MODEL: dict[str, Any] = {
    "name": "deepseek_v3",
    "dim": 64,
    "n_layers": 2,
    "n_dense_layers": 1,
    "n_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "dense_hidden_dim": 128,
    "moe_hidden_dim": 32,
    "num_experts": 8,
    "num_shared_experts": 1,
    "top_k": 2,
    "mtp_depth": 2,
    "mtp_loss_weight": 0.5,
}
EXTRA = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight")
LENGTHS = (40, 24)
"""Documents of a sequence."""


class Plain:
    """The model in the paper's notation (equations 21 to 25), document by document."""

    def __init__(self, weights: dict[str, torch.Tensor], config: dict[str, Any], place: Path):
        transformers = pytest.importorskip("transformers")
        depth = config["num_nextn_predict_layers"]
        self.layers = config["num_hidden_layers"]
        whole = config | {"num_hidden_layers": self.layers + depth}
        own = {name for name in weights if name.endswith(EXTRA)}
        (place / "config.json").write_text(json.dumps(whole))
        rest = {name: weights[name].contiguous() for name in weights if name not in own}
        save_file(rest, place / "model.safetensors", metadata={"format": "pt"})
        self.model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        self.extra = {name: weights[name].clone().requires_grad_() for name in own}
        self.depth, self.eps = depth, config["rms_norm_eps"]

    def losses(self, ids_L: torch.Tensor, labels_L: torch.Tensor) -> list[torch.Tensor]:
        """Sums of cross-entropies: of the next token, and of each depth."""
        base, length = self.model.model, len(ids_L)
        positions = torch.arange(length)[None]
        embedded = base.embed_tokens(ids_L[None])
        h = embedded
        for layer in base.layers[: self.layers]:
            h = self._block(layer, h, positions)
        found = [self._loss(base.norm(h), labels_L)]
        for k in range(1, self.depth + 1):
            left = length - k
            before, after = h[:, :left], embedded[:, k:]
            joined = torch.cat([self._norm(k, "enorm", after), self._norm(k, "hnorm", before)], -1)
            h = F.linear(joined, self._extra(k, "eh_proj"))
            h = self._block(base.layers[self.layers + k - 1], h, positions[:, :left])
            found.append(self._loss(self._norm(k, "shared_head.norm", h), labels_L[k:]))
        return found

    def _block(self, layer: Any, h: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        length = h.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        rotation = self.model.model.rotary_emb(h, positions)
        out = layer(h, attention_mask=mask, position_ids=positions, position_embeddings=rotation)
        return out[0] if isinstance(out, tuple) else out

    def _extra(self, k: int, name: str) -> torch.Tensor:
        return self.extra[f"model.layers.{self.layers + k - 1}.{name}.weight"]

    def _norm(self, k: int, name: str, h: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(h, h.shape[-1:], self._extra(k, name), self.eps)

    def _loss(self, h: torch.Tensor, labels_L: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model.lm_head(h)[0], labels_L, reduction="sum")


def test_losses_and_gradients_are_the_papers(tmp_path: Path) -> None:
    """Of two documents in a sequence, apart from each other; weights have the names of DeepSeek."""
    subject = models.subject(Host.load(), MODEL)
    model = subject.model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    adapter = subject.parts.state_dict_adapter(subject.config(), None)
    ids_BL = subject.tokens(1, sum(LENGTHS) + 1)
    positions_BL = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    inputs_BL, labels_BL = ids_BL[:, :-1], ids_BL[:, 1:]
    exported = {n: w.detach().clone() for n, w in adapter.to_hf(models.state(model)).items()}

    plain = Plain(exported, dict(subject.parts.hf_config), tmp_path)
    sums = torch.zeros(3)
    for ids_L, labels_L in zip(
        inputs_BL[0].split(LENGTHS), labels_BL[0].split(LENGTHS), strict=True
    ):
        sums = sums + torch.stack(plain.losses(ids_L, labels_L))
    main, ahead = sums[0] / sum(LENGTHS), sums[1:].mean() / sum(LENGTHS)
    (main + 0.5 * ahead).backward()

    loss_of = subject.parts.loss
    assert loss_of is not None
    loss = loss_of(cross_entropy=CrossEntropyLoss.Config()).build()
    assert isinstance(loss, PredictingLoss)
    output = logits(model, inputs_BL, positions_BL)
    value, _ = loss(output, labels_BL, torch.tensor(sum(LENGTHS)), positions=positions_BL)
    value.backward()
    assert value.item() == pytest.approx(main.item(), abs=1e-5)
    assert loss.further is not None
    assert loss.further.item() == pytest.approx(ahead.item(), abs=1e-5)
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    grads = adapter.to_hf({name: grad for name, grad in named.items() if "experts" not in name})
    theirs = dict(plain.model.named_parameters()) | plain.extra
    checked = [name for name in grads if name in theirs and "experts" not in name]
    assert len(checked) > 50
    for name in checked:
        torch.testing.assert_close(grads[name], theirs[name].grad, atol=2e-5, rtol=2e-3, msg=name)

    with torch.no_grad():  # whatever is not training has logits, and their loss
        model.eval()
        output = logits(model, inputs_BL, positions_BL)
        plain_loss, _ = loss(output, labels_BL, torch.tensor(sum(LENGTHS)), positions=positions_BL)
    assert plain_loss.item() == pytest.approx(main.item(), abs=1e-5)


def test_it_is_counted() -> None:
    """The output layer is computed three times; without depth, the model is torchtitan's own."""
    subject = models.subject(Host.load(), MODEL)
    config = subject.config()
    assert config.outputs == 3
    with torch.device("meta"):
        model = config.build()
    size, flops = config.get_nparams_and_flops(model, 64)
    head = config.dim * config.vocab_size
    expected, without = type(config).__mro__[1].get_nparams_and_flops(config, model, 64)
    assert (size, flops) == (expected, without + 2 * 6 * head)
    assert not issubclass(
        type(models.subject(Host.load(), MODEL | {"mtp_depth": 0}).model()), PredictingModel
    )


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"pipeline_parallel_degree": 2}, "needs the embedding on the last stage"),
        ({"context_parallel_degree": 2}, "reads tokens and labels ahead"),
    ],
)
def test_layouts_that_divide_it_are_refused(layout: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=f"multi-token prediction .architecture.mtp_depth. {says}"):
        mtp._check(ParallelismConfig(**layout))


@pytest.mark.slow
def test_ranks_of_all_kinds_train_alike() -> None:
    layout = {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 2,
    }
    rows, one = runs.train(runs.sections(MODEL, layout)), runs.on_one_rank(MODEL)
    runs.assert_same(rows, one)
    assert [row.mtp_loss for row in rows] == pytest.approx([row.mtp_loss for row in one], abs=1e-5)
    assert all(row.mtp_loss != row.loss for row in one)
