"""Release finished runs as one folder, verify such folders, and train their segments again.

This room runs above all others but the commands. It imports no torch: tensors are read by
:mod:`atom.titan.weights.state`, imported where they are needed.
"""
