"""Whether the conformance kit finds what it promises to find: one deliberate fault a mutant.

The mutants and their unbroken twins are the plugin in ``tests/mutants_model``, installed in a
temporary folder and tested by a pytest of its own, as an author's would be.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from atom_docs.pages import DOCS, write_files

from atom.testing.installing import describe

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).with_name("mutants_model")

CAUGHT = {
    # component -> (the test that finds it, words of its failure)
    "architecture:leaks_the_future": ("test_is_causal", "is seen by earlier ones"),
    "architecture:averages_the_sequence": ("test_is_causal", "is seen by earlier ones"),
    "architecture:ignores_documents": (
        "test_documents_do_not_see_each_other",
        "of the second document see the first",
    ),
    "architecture:detaches_a_parameter": (
        "test_every_parameter_gets_a_gradient",
        "layers.0.attention_norm.weight",
    ),
    "architecture:leaves_a_parameter_uninitialised": (
        "test_every_parameter_is_initialised",
        "norm.weight",
    ),
    "architecture:starts_too_loud": (
        "test_initial_loss_is_that_of_knowing_nothing",
        "at initialisation, and ln(256) is 5.55",
    ),
    "architecture:drops_out": ("test_is_deterministic", "another loss for the same weights"),
    "architecture:climbs_the_gradient": ("test_overfits_one_batch", "the loss went from"),
    "architecture:miscounts_parameters": (
        "test_parameter_count_is_the_declared_one",
        "get_nparams_and_flops counts other parameters",
    ),
    "architecture:makes_tensors_on_the_cpu": (
        "test_builds_on_the_meta_device",
        "layers.0.table",
    ),
    "architecture:exports_wrong_weights": (
        "test_hugging_face_weights_round_trip",
        "weights that come back changed",
    ),
    "architecture:loses_exported_names": (
        "test_hugging_face_weights_round_trip",
        "names lost or made up",
    ),
    "architecture:depends_on_local_heads": (
        "test_layouts_train_alike[tp]",
        "another loss than on one rank",
    ),
    "architecture:keeps_state_out_of_checkpoints": (
        "test_checkpoints_move_between_layouts",
        "another loss than on one rank",
    ),
    "architecture:forgets_a_sharding": (
        "test_layouts_train_alike[fsdp]",
        "layers.1.ffn_norm (RMSNorm) cannot be laid out: no sharding_config for weight",
    ),
    "architecture:forgets_a_weights_sharding": (
        "test_is_causal",
        "layers.1.ffn_norm (RMSNorm) cannot be laid out: state_shardings has no weight",
    ),
    "architecture:loses_the_window": (
        "test_windows_are_kept",
        "a token of layer 0 sees 64 tokens of 64, and its sliding_window_size is 12",
    ),
    "architecture:takes_the_wrong_mask": (
        "test_windows_are_kept",
        "a token of layer 1 sees 12 tokens of 64, and its sliding_window_size is None",
    ),
    "architecture:removes_the_window": (
        "test_windows_are_kept",
        "is not what the conformance line says",
    ),
    "architecture:breaks_on_ranks": (
        "test_layouts_train_alike[fsdp]",
        "ValueError: a layer of the mutant broke (see ",
    ),
    "parallelism:other_degrees": (
        "test_lays_out_every_number_of_ranks_that_fits",
        "other degrees than the run's",
    ),
    "callback:scales_gradients": ("test_changes_no_loss", "the callback changes the training"),
    "callback:draws_random_numbers": ("test_changes_no_loss", "draws random numbers of torch's"),
    "callback:forgets_its_state": (
        "test_resumes_as_if_uninterrupted",
        "state that the checkpoint does not have",
    ),
    "callback:logs_its_shard": ("test_values_agree_over_layouts[fsdp]", "other values than on one"),
    "parallelism:too_few_ranks": (
        "test_lays_out_every_number_of_ranks_that_fits",
        "other degrees than the run's",
    ),
    "parallelism:crashes": ("test_lays_out_every_number_of_ranks_that_fits", "KeyError: 3"),
    "parallelism:forgets_gradients": (
        "test_trains_like_one_rank[first]",
        "than on one rank",
    ),
    "kernel:rms_norm/mutant_wrong_gradient": (
        "test_agrees_with_the_reference",
        "the gradient of x_BLD is off by",
    ),
    "kernel:rms_norm/mutant_rounds_too_much": ("test_agrees_with_the_reference", "is off by"),
    "kernel:rms_norm/mutant_wrong_for_odd_sizes": ("test_odd_sizes_agree", "is off by"),
    "kernel:rms_norm/mutant_ignores_strides": ("test_strided_inputs_agree", "transposed: "),
    "kernel:rms_norm/mutant_ignores_strides_of_gradients": (
        "test_strided_gradients_agree",
        "contiguous, gradient expanded: ",
    ),
    "kernel:attention/mutant_ignores_windows": ("test_agrees_with_the_reference", "window 9"),
    "kernel:rms_norm/mutant_triton_takes_a_part_for_the_whole": (
        "test_computes_sharded_in_tritons_interpreter[partial_dtensor]",
        "another gradient than on one rank",
    ),
    "kernel:rms_norm/mutant_wrong_function": (
        "test_functions_agree",
        "the gradient of x is off by",
    ),
    "kernel:rms_norm/mutant_unknown_function": (
        "test_functions_agree",
        "there is no contract rmsnorm; did you mean rms_norm",
    ),
    "kernel:rms_norm/mutant_leaves_the_node": (
        "test_takes_the_place_of_the_operation",
        "leaves the operation's node as it is",
    ),
    "kernel:rms_norm/mutant_loses_the_sharding": (
        "test_takes_the_place_of_the_operation",
        "its sharding is lost",
    ),
    "kernel:rms_norm/mutant_needs_more_than_it_says": (
        "test_needs_are_honest",
        "its declared needs are met by this cpu, and it cannot run",
    ),
    "kernel:rms_norm/mutant_needs_nonsense": (
        "test_needs_are_a_reason_and_not_a_crash",
        "InvalidRequirement",
    ),
    "kernel:rms_norm/mutant_triton_without_mask": (
        "test_agrees_in_tritons_interpreter",
        "is off by",
    ),
    "kernel:rms_norm/mutant_triton_changes_type": (
        "test_compiles_for_gpus",
        "for compute capability 9.0, float32: _changes_type_kernel: ",
    ),
    "optimizer:decays_all": (
        "test_groups_have_their_own_options",
        "the decay of its group is ignored",
    ),
    "optimizer:hides_its_state": (
        "test_keeps_the_state_that_it_declares",
        "another size of its state",
    ),
    "optimizer:moves_at_rest": (
        "test_a_rate_of_zero_changes_nothing",
        "changed without a step",
    ),
    "optimizer:norms_its_shard": (
        "test_every_layout_trains_like_one_rank[fsdp]",
        "another loss than on one rank",
    ),
    "optimizer:counts_steps_itself": (
        "test_resumes_as_if_uninterrupted",
        "state that the checkpoint does not have",
    ),
    "kernel:optimizer_step/mutant_without_correction": (
        "test_agrees_with_the_reference",
        "the output is off by",
    ),
    "kernel:gradient_clipping/mutant_of_matrices": ("test_functions_agree", "is off by"),
    "kernel:newton_schulz/mutant_stops_early": ("test_functions_agree", "output 0 is off by"),
}
TWINS: dict[str, tuple[str, ...]] = {
    # component -> the tests that it passes, all of its kind's where none is named
    "architecture:twin": (),
    "callback:twin": (
        "test_changes_no_loss",
        "test_resumes_as_if_uninterrupted",
        "test_values_agree_over_layouts[fsdp]",
    ),
    "optimizer:twin": (
        "test_groups_have_their_own_options",
        "test_keeps_the_state_that_it_declares",
        "test_a_rate_of_zero_changes_nothing",
        "test_every_layout_trains_like_one_rank[fsdp]",
        "test_resumes_as_if_uninterrupted",
    ),
    "architecture:windowed_twin": ("test_windows_are_kept",),
    "parallelism:twin": (),
    "kernel:rms_norm/mutant_twin": (),
    "kernel:rms_norm/mutant_triton_of_parts_twin": (
        "test_compiles_for_gpus",
        "test_agrees_in_tritons_interpreter",
        "test_computes_sharded_in_tritons_interpreter[partial_dtensor]",
    ),
    "kernel:optimizer_step/mutant_twin": ("test_agrees_with_the_reference",),
    "kernel:gradient_clipping/mutant_twin": ("test_functions_agree",),
    "kernel:newton_schulz/mutant_twin": ("test_functions_agree",),
}
LEFT_OUT = (
    # Ranks for what finds no mutant; the architectures and strategies of the plugins pass it.
    *(f"Test_architecture_twin::test_layouts_train_alike[{name}]" for name in ("pp", "cp", "4d")),
    "Test_parallelism_twin::test_lays_out_ten_thousand_ranks",
    "Test_parallelism_twin::test_trains_like_one_rank[second]",
    "Test_parallelism_twin::test_checkpoints_load_on_one_rank",
    "Test_kernel_rms_norm_mutant_twin::test_computes_sharded[cp]",
    # It has no Triton kernel, and stands in a package that has; another twin passes them.
    "Test_kernel_rms_norm_mutant_twin::test_agrees_in_tritons_interpreter",
    "Test_kernel_rms_norm_mutant_twin::test_compiles_for_gpus",
    "Test_kernel_rms_norm_mutant_twin::test_computes_sharded_in_tritons_interpreter",
)

HAVING = {
    f"architecture:{name}": ".having(windows=[12, 0])"
    for name in ("windowed_twin", "removes_the_window")
}
"""Component -> what is said of it in the conformance line."""

PARAMETERS = {"parallelism": ", data_parallel_shard_degree=-1"}


def class_name(component: str) -> str:
    return "Test_" + component.replace(":", "_").replace("/", "_")


@pytest.fixture(scope="module")
def results(
    conforms: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], str]:
    """What became of each test: ``passed``, ``skipped``, or the words of its failure."""
    folder = tmp_path_factory.mktemp("mutants")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    write_files(DOCS / "plugins" / "architecture.md", folder / PACKAGE.name)
    for kind in ("architecture", "parallelism"):
        group = folder / PACKAGE.name / "conf" / kind
        group.mkdir(parents=True)
        (group / "mutant_twin.yaml").write_text("name: twin\n")
    (group.parent / "architecture/mutant_windowed_twin.yaml").write_text("name: windowed_twin\n")
    describe(folder, "mutants-model")
    module = folder / "test_mutants.py"
    lines = [
        f"{class_name(component)} = conformance({component!r}"
        f"{PARAMETERS.get(component.partition(':')[0], '')}){HAVING.get(component, '')}"
        for component in [*TWINS, *CAUGHT]
    ]
    module.write_text("from atom.testing import conformance\n" + "\n".join(lines) + "\n")
    chosen = [f"--deselect={module.name}::{test}" for test in LEFT_OUT]
    for twin, tests in TWINS.items():
        suite = f"{module}::{class_name(twin)}"
        chosen += [f"{suite}::{test}" for test in tests] or [suite]
    chosen += [f"{module}::{class_name(mutant)}::{test}" for mutant, (test, _) in CAUGHT.items()]
    report = folder / "report.xml"
    process = conforms(
        *(f"--rootdir={folder}", "-c", os.devnull, f"--junitxml={report}", *chosen),
        cwd=folder,
        timeout=1500,
        PYTHONPATH=str(folder),
        TMPDIR=str(folder),
    )
    assert process.returncode == 1, process.stdout + process.stderr
    return {
        (case.attrib["classname"].rpartition(".")[2], case.attrib["name"]): _outcome(case)
        for case in ElementTree.parse(report).iter("testcase")
    }


def _outcome(case: ElementTree.Element) -> str:
    for child in case:
        if child.tag in ("failure", "error"):
            return f"{child.attrib['message']}\n{child.text}"
        if child.tag == "skipped":
            return "skipped"
    return "passed"


@pytest.mark.parametrize("mutant", CAUGHT)
def test_mutants_are_caught(mutant: str, results: dict[tuple[str, str], str]) -> None:
    test, words = CAUGHT[mutant]
    assert words in results[class_name(mutant), test]


def test_the_log_of_a_failed_run_is_kept(results: dict[tuple[str, str], str]) -> None:
    """What a failure cites is there when pytest has ended; of other runs nothing is left."""
    words = results["Test_architecture_breaks_on_ranks", "test_layouts_train_alike[fsdp]"]
    cited = re.search(r"\(see ([^)]+)\)", words)
    assert cited is not None
    log = Path(cited[1])
    assert "a layer of the mutant broke" in log.read_text()
    runs = log.parents[2]
    assert [path for path in runs.iterdir() if path.is_dir()] == [log.parents[1]]


@pytest.mark.parametrize("twin", TWINS)
def test_twins_pass(twin: str, results: dict[tuple[str, str], str]) -> None:
    outcomes = {
        test: result for (owner, test), result in results.items() if owner == class_name(twin)
    }
    assert "passed" in outcomes.values()
    assert {*outcomes.values()} <= {"passed", "skipped"}


def test_every_mutant_has_its_tests_twin(results: dict[tuple[str, str], str]) -> None:
    """The test that finds a fault has passed on a component of the kind without it."""
    for mutant, (test, _) in CAUGHT.items():
        kind = mutant.partition(":")[0]
        twins = [class_name(twin) for twin in TWINS if twin.startswith(kind)]
        assert "passed" in [results.get((twin, test)) for twin in twins], f"{test} of a {kind}"
