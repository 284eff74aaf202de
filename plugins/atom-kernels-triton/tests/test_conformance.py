"""Every kernel of the package keeps the promises of a kernel."""

from atom.testing import conformance

TestRmsNorm = conformance("kernel:rms_norm/triton")
TestRope = conformance("kernel:rope/triton")
TestRopeHalves = conformance("kernel:rope_halves/triton")
TestFeedForward = conformance("kernel:feed_forward/triton")
TestCrossEntropy = conformance("kernel:cross_entropy/triton")
TestLinearCrossEntropy = conformance("kernel:linear_cross_entropy/triton")
