"""Time kernels on this machine's device and compare them with the device's limits."""
