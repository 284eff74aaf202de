"""What holds for every test, of the core and of the plugins."""

import signal

from atom.titan import device

# torchtitan asks for its device as it is imported, and any test module may be the first to do so.
# Tests in this process compute on the CPU; those that need a GPU start processes of their own.
device.use("cpu")

# A shell has its background jobs ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
