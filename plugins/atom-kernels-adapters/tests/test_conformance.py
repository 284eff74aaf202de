"""Every kernel of the package keeps the promises of a kernel, where its package and device are."""

from atom.testing import conformance

TestLigerRmsNorm = conformance("kernel:rms_norm/liger")
TestLigerRopeHalves = conformance("kernel:rope_halves/liger")
TestLigerFeedForward = conformance("kernel:feed_forward/liger")
TestLigerCrossEntropy = conformance("kernel:cross_entropy/liger")
TestLigerLinearCrossEntropy = conformance("kernel:linear_cross_entropy/liger")
TestQuackRmsNorm = conformance("kernel:rms_norm/quack")
TestQuackCrossEntropy = conformance("kernel:cross_entropy/quack")
TestQuackLinearCrossEntropy = conformance("kernel:linear_cross_entropy/quack")
TestCutCrossEntropy = conformance("kernel:linear_cross_entropy/cut_cross_entropy")
TestTitanFeedForward = conformance("kernel:feed_forward/titan_fused")
TestTitanGroupedMm = conformance("kernel:grouped_mm/titan_fused")
TestHelionRope = conformance("kernel:rope/helion")
TestHelionRopeHalves = conformance("kernel:rope_halves/helion")
TestFloat8Rowwise = conformance("kernel:linear/float8_rowwise")
TestFloat8RowwiseGwHp = conformance("kernel:linear/float8_rowwise_gw_hp")
TestDeepEp = conformance("kernel:moe_dispatch/deepep")
TestHybridEp = conformance("kernel:moe_dispatch/hybridep")
TestFloat8Tensorwise = conformance("kernel:linear/float8_tensorwise")
TestFloat8TensorwiseGathered = conformance("kernel:linear/float8_tensorwise_gathered")
