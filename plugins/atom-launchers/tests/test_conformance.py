"""The launchers keep the promises of their kind."""

from atom.testing import conformance

TestTorchrun = conformance("launcher:torchrun")
TestSlurm = conformance("launcher:slurm")
TestKubernetes = conformance("launcher:kubernetes")
TestSkyPilot = conformance("launcher:skypilot")
