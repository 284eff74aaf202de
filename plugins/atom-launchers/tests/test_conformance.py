"""The launchers keep the promises of their kind."""

from atom.testing import conformance

_BY_HAND = "commands are started by hand"
TestTorchrun = conformance("launcher:torchrun").having(
    unsupported=dict.fromkeys(("time", "image", "mounts"), _BY_HAND)
)
TestSlurm = conformance("launcher:slurm")
TestKubernetes = conformance("launcher:kubernetes")
TestSkyPilot = conformance("launcher:skypilot")
