"""What holds for every test, of the core and of the plugins."""

from atom.titan import device

# torchtitan asks for its device as it is imported, and any test module may be the first to do so.
# Tests in this process compute on the CPU; those that need a GPU start processes of their own.
device.use("cpu")
