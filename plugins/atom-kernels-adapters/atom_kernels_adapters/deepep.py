"""Override torchtitan's exchange of tokens between expert ranks with DeepEP's.

The dispatchers are torchtitan's own. It sets the width of the model and the tokens per rank, which
determine the size of their buffers, and refuses a run without expert parallelism.
"""

from __future__ import annotations

from torchtitan.config.override import derive, override
from torchtitan.models.common.token_dispatcher import (
    AllToAllTokenDispatcher,
    DeepEPTokenDispatcher,
    HybridEPTokenDispatcher,
)


@override(target=AllToAllTokenDispatcher.Config, exact=True, description="DeepEP's ElasticBuffer")
def deepep(node: AllToAllTokenDispatcher.Config) -> AllToAllTokenDispatcher.Config:
    found: AllToAllTokenDispatcher.Config = derive(node, DeepEPTokenDispatcher.Config)
    return found


@override(target=AllToAllTokenDispatcher.Config, exact=True, description="DeepEP's HybridEPBuffer")
def hybridep(node: AllToAllTokenDispatcher.Config) -> AllToAllTokenDispatcher.Config:
    """Use blocking mode, which drops no tokens."""
    found: AllToAllTokenDispatcher.Config = derive(node, HybridEPTokenDispatcher.Config)
    return found
