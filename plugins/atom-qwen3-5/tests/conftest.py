"""``transformers`` computes Qwen3.5 by itself here.

Where it finds ``fla``, it takes FLA's kernels on any device (5.24), and they need a GPU.
"""

import importlib
import sys

import pytest


@pytest.fixture(scope="session")
def transformers_without_fla() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        try:
            importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")
            importlib.import_module("transformers.models.qwen3_5_moe.modeling_qwen3_5_moe")
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
