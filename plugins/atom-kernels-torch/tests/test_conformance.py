"""Every kernel of the package keeps the promises of a kernel, where there is a device for it."""

from atom.testing import conformance

TestReferenceAttention = conformance("kernel:attention/reference")
TestFlexAttention = conformance("kernel:attention/flex")
TestFlexFlashAttention = conformance("kernel:attention/flex_flash")
TestVarlenAttention = conformance("kernel:attention/varlen")
TestCrossEntropy = conformance("kernel:cross_entropy/reference")
TestEmbedding = conformance("kernel:embedding/reference")
TestFeedForward = conformance("kernel:feed_forward/reference")
TestLinear = conformance("kernel:linear/reference")
TestRmsNorm = conformance("kernel:rms_norm/reference")
TestRope = conformance("kernel:rope/reference")
