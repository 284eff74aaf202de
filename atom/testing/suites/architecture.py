"""The suite of an architecture: a causal language model that trains alike under any layout.

Shape suffixes: B = sequences, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from atom.errors import UserError
from atom.registry.host import Host
from atom.testing import models, partners, runs, windows
from atom.testing.applicable import where
from atom.testing.models import Subject
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite

if TYPE_CHECKING:
    import torch

NEGLIGIBLE = 1e-5
"""Change of a logit that rounding explains; the logits themselves are about 1."""


class ArchitectureSuite(Options, ComponentSuite):
    """The contract of an architecture.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        parameter_count: the documented number of parameters, if any.
        unsupported: layout (``fsdp``, ``tp``, ``pp``, ``cp``, ``ep``) -> why this architecture
            does not support it. The tests of that layout are skipped with the reason.
        windows: attention window of each layer in tokens, 0 for full attention; None to use the
            layers' ``sliding_window_size``.
    """

    kind = "architecture"
    options = ("parameter_count", "unsupported", "windows")
    windows: ClassVar[Sequence[int] | None] = None

    parameter_count: ClassVar[int | None] = None
    unsupported: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """With tensors this small, more threads only add contention."""
        with models.one_thread():
            yield

    @pytest.fixture
    def subject(self, host: Host) -> Subject:
        """The architecture in the kit's small run; the test fails with the reason if it
        is refused.
        """
        try:
            return models.subject(host, self.architecture)
        except UserError as error:
            pytest.fail(error.sentence(), pytrace=False)

    @property
    def architecture(self) -> dict[str, Any]:
        """The section of a run."""
        return {"name": self.name} | self.parameters

    # ------------------------------------------------------------------------ as built

    def test_builds_on_the_meta_device(self, subject: Subject) -> None:
        """No parameter or buffer uses memory, and every module is one of torchtitan's kind."""
        model: Any = subject.on_meta()
        elsewhere = [
            name
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            if tensor.device.type != "meta"
        ]
        assert not elsewhere, "tensors made on a device of their own, not where torch.device says"
        model.verify_module_protocol()

    def test_parameter_count_is_the_declared_one(self, subject: Subject) -> None:
        """The model has as many parameters as ``get_nparams_and_flops`` of its config reports to
        torchtitan, and as the conformance line declares."""
        model = subject.on_meta()
        counted = sum(parameter.numel() for parameter in model.parameters())
        told, flops = subject.config().get_nparams_and_flops(model, runs.SEQ_LEN)
        assert told == counted, "get_nparams_and_flops counts other parameters than the model has"
        assert flops > 0
        if self.parameter_count is not None:
            assert counted == self.parameter_count

    def test_every_parameter_is_initialised(self, subject: Subject) -> None:
        """No uninitialized memory remains."""
        model = subject.model(filled_with=math.nan)
        left = [name for name, tensor in model.state_dict().items() if tensor.isnan().any()]
        assert not left, "parameters that init_weights leaves as they are"

    def test_initial_loss_is_that_of_knowing_nothing(self, subject: Subject) -> None:
        """Random tokens cost about ln(vocabulary); logits of variance 1 add one half.

        With tied embeddings, a narrow model starts by repeating its input. That is not a fault of
        the scale, so the logit of the input token is excluded.
        """
        import torch
        import torch.nn.functional as F

        vocab_size = partners.VOCAB_SIZE
        inputs_BL = subject.tokens(8)
        targets_BL = (inputs_BL + subject.tokens(8, seed=1) % (vocab_size - 1) + 1) % vocab_size
        with torch.no_grad():
            logits_BLV = models.logits(subject.model(), inputs_BL).float()
        if subject.tied:
            logits_BLV.scatter_(-1, inputs_BL[..., None], -math.inf)
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten()).item()
        expected = math.log(vocab_size)
        assert expected - 0.5 < loss < expected + 1, (
            f"loss {loss:.2f} at initialisation, and ln({vocab_size}) is {expected:.2f}"
        )

    # ------------------------------------------------------------------------ what sees what

    def test_is_causal(self, subject: Subject) -> None:
        """A changed token changes its own logits and no earlier ones."""
        import torch

        length = runs.SEQ_LEN
        changed = [1, 2, length // 3, length // 2, length - 1]
        ids_BL = subject.tokens(1).repeat(1 + len(changed), 1)
        for row, position in enumerate(changed, start=1):
            ids_BL[row, position] = (ids_BL[row, position] + 1) % partners.VOCAB_SIZE
        with torch.no_grad():
            logits_BLV = models.logits(subject.model(), ids_BL)
        difference_BL = (logits_BLV[1:] - logits_BLV[:1]).abs().amax(dim=-1)
        for difference_L, position in zip(difference_BL, changed, strict=True):
            seen = difference_L[:position] > NEGLIGIBLE
            assert not seen.any(), f"token {position} is seen by earlier ones: {_where(seen)}"
            assert difference_L[position] > NEGLIGIBLE, f"token {position} does not see itself"

    def test_documents_do_not_see_each_other(self, subject: Subject) -> None:
        """Positions restart at 0 at each document, and earlier documents are masked."""
        import torch

        lengths = (27, runs.SEQ_LEN - 27 - 8, 8)  # boundaries inside of mask blocks
        ids_BL = subject.tokens(1).repeat(2, 1)
        ids_BL[1, : lengths[0]] = subject.tokens(1, lengths[0], seed=1)
        with torch.no_grad():
            model = subject.model()
            apart_BLV = models.logits(model, ids_BL, lengths)
            together_BLV = models.logits(model, ids_BL)
        seen = _differ(apart_BLV)[lengths[0] :] > NEGLIGIBLE
        assert not seen.any(), (
            f"tokens of the second document see the first: {_where(seen)} after its start"
        )
        assert (_differ(together_BLV)[lengths[0] :] > NEGLIGIBLE).any(), (
            "tokens of one document do not see the earlier ones either"
        )

    def test_windows_are_kept(self, subject: Subject) -> None:
        """Each attention layer sees as many tokens as its window allows, or all without
        a window.
        """
        from atom.titan import windows as declaring

        length, config = runs.SEQ_LEN, subject.config()
        declared = declaring.of_layers(config)
        if not declared:
            pytest.skip(f"{self.name} has no layer of softmax attention")
        if self.windows is not None:
            assert [declared.get(layer, 0) for layer in range(len(config.layers))] == [
                *self.windows
            ], "the layers' sliding_window_size is not what the conformance line says"
        seen = windows.measured(subject.model(), subject.tokens(1), NEGLIGIBLE)
        for layer, window in declared.items():
            expected = min(window or length, length)
            assert seen[layer] == expected, (
                f"a token of layer {layer} sees {seen[layer]} tokens of {length}, and its "
                f"sliding_window_size is {window or None}"
            )

    def test_generates_the_same_with_a_cache(self, subject: Subject) -> None:
        """Texts of different lengths, computed together from what their layers keep, get the most
        likely tokens that each text alone gets when all of it is computed for each token."""
        from atom.titan.generation import decoding
        from atom.titan.generation.cache import Recomputed
        from atom.titan.generation.generate import generate

        model = subject.model().eval()
        if reason := decoding.uncached(model):
            pytest.skip(f"{self.name} is computed without a cache: {reason}")
        prompts = [
            subject.tokens(1, length, seed)[0].tolist() for seed, length in enumerate((3, 9))
        ]
        for prompt, together in zip(prompts, generate(model, prompts, tokens=8), strict=True):
            alone, more = Recomputed(model), prompt
            for token in together:
                assert token == alone.extend([more]).argmax(), "another token without a cache"
                more = [token]

    # ------------------------------------------------------------------------ training

    def test_every_parameter_gets_a_gradient(self, subject: Subject) -> None:
        model = subject.model()
        models.loss(model, subject.tokens(8)).backward()
        without = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.any()
        ]
        assert not without, "parameters that the loss does not depend on"
        infinite = [
            name
            for name, parameter in model.named_parameters()
            if not parameter.grad.isfinite().all()
        ]
        assert not infinite, "parameters whose gradient is not finite"

    def test_a_loss_in_pieces_is_the_loss(self, subject: Subject) -> None:
        """Applying the output layer to chunks of the hidden states (``loss.num_chunks``) gives the
        same loss as the logits. A model for which a run refuses this is left out."""
        from atom.titan.checks import output_layers

        model, ids_BL = subject.model(), subject.tokens(2, 17)
        if reason := output_layers.beside_layer(model, getattr(model, "lm_head", None)):
            pytest.skip(reason)
        whole = models.loss(model, ids_BL).item()
        pieces = models.loss_in_pieces(model, ids_BL, 2).item()
        assert pieces == pytest.approx(whole, abs=1e-4), "another loss than that of the logits"

    def test_is_deterministic(self, subject: Subject) -> None:
        """The same seed gives the same weights, and the same batch the same loss and gradients, bit
        for bit. A model that draws random numbers in training would depend on the layout."""
        import torch

        first, second = subject.model(), subject.model()
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), f"{name} at initialisation"
        ids_BL = subject.tokens(4)
        losses = []
        for model in (first, second):
            loss = models.loss(model, ids_BL)
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == losses[1], "another loss for the same weights and tokens"
        theirs = dict(second.named_parameters())
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter.grad, theirs[name].grad), f"gradient of {name}"

    @pytest.mark.slow
    def test_overfits_one_batch(self, subject: Subject) -> None:
        """AdamW memorizes 32 random tokens in at most 100 steps."""
        import torch

        model, ids_BL = subject.model(), subject.tokens(2, 17)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        first = loss = models.loss(model, ids_BL)
        for _ in range(100):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss = models.loss(model, ids_BL)
            if loss.item() < 0.1 * first.item():
                return
        pytest.fail(f"the loss went from {first.item():.2f} to {loss.item():.2f} and no further")

    # ------------------------------------------------------------------------ weights

    def test_hugging_face_weights_round_trip(self, subject: Subject) -> None:
        """Converting weights to Hugging Face's names and back changes none."""
        import torch

        adapter_class = subject.parts.state_dict_adapter
        if adapter_class is None:
            pytest.skip(f"{self.name} declares no state-dict adapter")
        model = subject.model()
        before = models.state(model)
        adapter = adapter_class(subject.config(), None)
        exported = adapter.to_hf(models.state(model))
        assert exported, "to_hf returns nothing"
        back = adapter.from_hf(dict(exported))
        assert sorted(back) == sorted(before), "names lost or made up on the way"
        changed = [name for name in before if not torch.equal(before[name], back[name])]
        assert not changed, "weights that come back changed"
        again = adapter.to_hf(back)
        assert sorted(again) == sorted(exported)
        assert all(torch.equal(exported[name], again[name]) for name in exported)

    # ------------------------------------------------------------------------ layouts

    @where(lambda suite, _, layout: suite().can_be_laid_out(layout))
    @pytest.mark.slow
    @pytest.mark.parametrize("layout", runs.LAYOUTS)
    def test_layouts_train_alike(self, layout: str) -> None:
        """Losses and gradient norms of real ranks equal those of one rank, step by step."""
        runs.assert_trains_alike(self.architecture, runs.LAYOUTS[layout])

    @pytest.mark.slow
    def test_checkpoints_move_between_layouts(self, subject: Subject) -> None:
        """A run saved under one layout and resumed under another trains as on one rank."""
        supported = [name for name in runs.LAYOUTS if self._cannot(name, subject) is None]
        if not supported:
            pytest.skip(f"{self.name} supports no layout but a single rank")
        # The two layouts that shard the weights most differently.
        saved = next(name for name in ("pp", "tp", *supported) if name in supported)
        others = [name for name in ("fsdp", *supported) if name in supported and name != saved]
        loaded = runs.LAYOUTS[others[0]] if others else runs.SINGLE
        steps = runs.RESUMED_STEPS
        rows = runs.train(
            runs.sections(self.architecture, loaded, steps=steps),
            after=runs.sections(self.architecture, runs.LAYOUTS[saved]),
        )
        runs.assert_same(rows, runs.on_one_rank(self.architecture, steps=steps))

    def can_be_laid_out(self, layout: str) -> bool:
        """Return whether the architecture supports a layout."""
        subject = models.subject(Host.load(), self.architecture)
        return self._cannot(layout, subject) is None

    def _cannot(self, layout: str, subject: Subject) -> str | None:
        """Return why the architecture does not support a layout, or None."""
        unknown = set(self.unsupported) - set(runs.LAYOUTS)
        assert not unknown, f"unsupported={unknown}; valid: {', '.join(runs.LAYOUTS)}"
        parts = ("fsdp", "tp", "pp", "cp", "4d") if layout == "4d" else (layout,)
        for part in parts:
            if part in self.unsupported:
                return f"{self.name} does not support {part}: {self.unsupported[part]}"
        if "pp" in parts and subject.tied:
            return f"{self.name} ties its embeddings, which torchtitan cannot pipeline"
        if layout == "ep" and not subject.has_experts:
            return f"{self.name} has no experts"
        return None


def _differ(logits_BLV: torch.Tensor) -> torch.Tensor:
    """Return the largest difference between two sequences' logits at each token."""
    return (logits_BLV[0] - logits_BLV[1]).abs().amax(dim=-1)


def _where(seen: torch.Tensor) -> str:
    positions = seen.nonzero().flatten().tolist()
    return ", ".join(map(str, positions[:8])) + (", …" if len(positions) > 8 else "")


CONFORMANCE = ArchitectureSuite
