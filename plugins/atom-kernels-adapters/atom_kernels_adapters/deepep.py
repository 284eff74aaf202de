"""DeepEP's exchange of tokens between the ranks of experts, as overrides of torchtitan's.

The dispatchers are torchtitan's own. It fills in the width of the model and the tokens of a rank,
which their buffers are sized by, and refuses a run without expert parallelism.
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
    """Blocking: as many tokens as come, and none of them dropped."""
    found: AllToAllTokenDispatcher.Config = derive(node, HybridEPTokenDispatcher.Config)
    return found
