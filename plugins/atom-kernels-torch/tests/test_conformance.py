"""Every kernel of the package keeps the promises of a kernel, where there is a device for it."""

from atom.testing import conformance

TestReferenceAttention = conformance("kernel:attention/reference")
TestCudnnAttention = conformance("kernel:attention/cudnn")
TestFlexAttention = conformance("kernel:attention/flex")
TestFlexFlashAttention = conformance("kernel:attention/flex_flash")
TestVarlenAttention = conformance("kernel:attention/varlen")
TestVarlenFa3Attention = conformance("kernel:attention/varlen_fa3")
TestVarlenFa4Attention = conformance("kernel:attention/varlen_fa4")
TestCrossEntropy = conformance("kernel:cross_entropy/reference")
TestEmbedding = conformance("kernel:embedding/reference")
TestFeedForward = conformance("kernel:feed_forward/reference")
TestGroupedMm = conformance("kernel:grouped_mm/reference")
TestLinear = conformance("kernel:linear/reference")
TestLinearCrossEntropy = conformance("kernel:linear_cross_entropy/reference")
TestMoeDispatch = conformance("kernel:moe_dispatch/reference")
TestRmsNorm = conformance("kernel:rms_norm/reference")
TestRope = conformance("kernel:rope/reference")
TestRopeHalves = conformance("kernel:rope_halves/reference")
