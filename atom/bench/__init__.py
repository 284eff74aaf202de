"""Time kernels on the device at hand: what they reach of what the device can do."""
