"""Low-rank adapters: their layers, and the model that has them.

torchtitan's ``LoRAConverter`` is not used. It gives the fused projection of queries, keys and
values one adapter, which no other library has; its frozen classes fit no kernel; and under
``spmd_types`` the weights that it froze are trained, because ``Module.parallelize`` registers them
anew.
"""
