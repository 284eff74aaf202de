"""The optimizers match references, train alike in every layout, and resume from checkpoints."""

from __future__ import annotations

import optimizer_references as references

from atom.testing import conformance

MUON = references.of_layers(references.muon, lambda config: config.lr)
DION = references.of_layers(references.dion, lambda config: config.adamw_lr)

TestAdamW = conformance("optimizer:AdamW", lr=1e-3).having(
    reference=references.adamw, tolerance=1e-6
)
TestAdam = conformance("optimizer:Adam", lr=1e-3).having(reference=references.adam, tolerance=1e-5)
TestMuon = conformance("optimizer:Muon", lr=1e-3).having(reference=MUON, tolerance=1e-6)
# A larger rate: a change of 1e-4 is near the precision of a weight in float32.
TestLion = conformance("optimizer:Lion", lr=1e-2).having(reference=references.lion, tolerance=1e-4)
TestAdafactor = conformance("optimizer:Adafactor", weight_decay=0.1).having(
    reference=references.adafactor, tolerance=1e-5
)
# The factors are products in float32 of the kit, and in float64 of the reference.
TestDion = conformance("optimizer:Dion", rank_fraction=0.5).having(reference=DION, tolerance=1e-4)
