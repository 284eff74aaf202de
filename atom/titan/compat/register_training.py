"""List the repairs of models, steps and checkpoints. Data only."""

from __future__ import annotations

from atom.io.repair import Repair

_PROBES = "atom.testing.probes.engine"
_STAGER = "torch.distributed.checkpoint._state_dict_stager:StateDictStager"
_RUNTIME = "torch.distributed.pipelining.schedules:_PipelineScheduleRuntime"
_STAGE = "torch.distributed.pipelining.stage:_PipelineStageBase"
_FSDP = "torch.distributed.fsdp._fully_shard._fsdp_collectives"

MESH_DEVICE = Repair(
    target="torchtitan.distributed.parallel_dims:device_type",
    reason="A mesh is always of the device that torchtitan is set up for; a layout is checked on "
    "the CPU, whatever the run trains on.",
    version="torchtitan 0.3.0",
    upstream="docs/upstream/mesh-device.md",
    remove_when="ParallelDims takes the device of its meshes.",
    applied="while preflight lays a model out on ranks that are not there",
    where="atom/titan/checks/pretend.py",
    sources={
        "torchtitan.distributed.parallel_dims:device_type": "7a09cdf4",
        "torchtitan.distributed.parallel_dims:ParallelDims.build_mesh": "6e31dd15.998e9740",
    },
    probe=f"{_PROBES}:mesh_takes_no_device",
)
INITIAL_WEIGHTS = Repair(
    target="torchtitan.protocols.module:Module._param_init",
    reason="Each rank initialises its shard with its own generator, so that another layout starts "
    "from other weights.",
    version="torchtitan 0.3.0",
    upstream="https://github.com/pytorch/torchtitan/issues/1750",
    remove_when="The initial weights of a run are equal under every layout.",
    applied="to a model, before its weights are initialised",
    where="atom/titan/train/initial_weights.py",
    sources={
        "torchtitan.protocols.module:Module._param_init": "4c8c4cc8",
        "torchtitan.protocols.module:Module.init_states": "39f4d7b0.e2685561",
    },
    probe=f"{_PROBES}:initial_weights_depend_on_the_layout",
)
CONTIGUOUS_STAGES = Repair(
    target=_STAGE,
    reason="Sequence parallelism leaves what a pipeline stage sends strided along the batch, which "
    "point-to-point sends refuse.",
    version="torch 2.15.0",
    upstream="https://github.com/pytorch/pytorch/pull/114982",
    remove_when="Point-to-point sends take strided tensors, or stages make them contiguous.",
    applied="to each pipeline stage",
    where="atom/titan/compat/pipeline.py",
    sources={f"{_STAGE}.get_fwd_send_ops": "afa6b83a.c5e51291"},
    probe=f"{_PROBES}:strided_tensors_are_not_sent",
)
FORWARD_SCHEDULES = Repair(
    target=f"{_RUNTIME}.eval",
    reason="A schedule that evaluates hands gradients to stages on the same rank (ZBVZeroBubble, "
    "DualPipeV), which have none.",
    version="torch 2.15.0",
    upstream="docs/upstream/forward-schedules.md",
    remove_when="Schedules of several stages on a rank evaluate a model.",
    applied="to a pipeline schedule, while a set is validated",
    where="atom/titan/compat/pipeline.py",
    sources={f"{_RUNTIME}._step_microbatches": "68ae0e52.8577e4af"},
    probe=f"{_PROBES}:v_schedules_do_not_evaluate",
)
SUM_REDUCTION = Repair(
    target="torch.distributed.fsdp:FSDPModule.set_force_sum_reduction_for_comms",
    reason="FSDP reduces gradients that have a divide factor by a scaled sum, which gloo lacks.",
    version="torch 2.15.0",
    upstream="https://github.com/pytorch/pytorch/pull/155915",
    remove_when="FSDP chooses a plain sum over gloo by itself.",
    applied="to a model on a CPU, after FSDP",
    where="atom/titan/compat/device.py",
    devices=("cpu",),
    sources={f"{_FSDP}:_get_gradient_divide_factors": "011bd1a1.387c88a4"},
    probe=f"{_PROBES}:gloo_lacks_scaled_sums",
)
LEARNING_RATES = Repair(
    target="torch.optim.lr_scheduler:LambdaLR.lr_lambdas",
    reason="After the end of its schedule torchtitan's learning rate is negative (linear, sqrt) or "
    "climbs back to the peak (cosine).",
    version="torchtitan 0.3.0",
    upstream="docs/upstream/learning-rate.md",
    remove_when="torchtitan's learning rate keeps its last value after the last scheduled step.",
    applied="to a run's schedules, as they are built",
    where="atom/titan/optim/rates.py",
    sources={"torchtitan.components.optimizer.lr_scheduler:LRSchedulersContainer": "71e5874d"},
    probe=f"{_PROBES}:learning_rates_go_on_after_their_end",
)
STEP = Repair(
    target="torchtitan.trainer:Trainer.train_step",
    reason="A step has no point between the gradients and the optimizer, where a loss or gradient "
    "norm can be judged.",
    version="torchtitan 0.3.0",
    upstream="https://github.com/pytorch/torchtitan/issues/916",
    remove_when="torchtitan's trainer calls a method of its own before the optimizer takes a step.",
    applied="by AtomTrainer, which overrides it",
    where="atom/titan/train/trainer.py",
    sources={
        "torchtitan.trainer:Trainer.train_step": "85857bc1.911f8077",
        "torchtitan.trainer:Trainer.forward_backward_step": "a866c266.c7b14c5a",
        "torchtitan.trainer:Trainer.train": "9a52335b.d2fe16fc",
    },
    unprobed="no function of torchtitan shows that a point is missing; the digests tell that the "
    "step has changed",
)
CLIPPING = Repair(
    target="torchtitan.distributed.utils:clip_grad_norm_",
    reason="torchtitan's overrides replace nodes of a config, and gradient clipping is a function.",
    version="torchtitan 0.3.0",
    upstream="docs/upstream/function-overrides.md",
    remove_when="torchtitan's overrides can replace clip_grad_norm_.",
    applied="while training, under a kernel of gradient_clipping",
    where="atom/titan/kernels.py",
    sources={
        "torchtitan.distributed.utils:clip_grad_norm_": "2d8ee3c3.855978eb",
        "torchtitan.config.override:override": "a5cd05c7.4d3bde73",
    },
    probe=f"{_PROBES}:functions_have_no_override",
)
OUTPUT_LAYER = Repair(
    target="torch.nn:Linear.forward",
    reason="A kernel that takes the output layer and the loss as one must run where the layer's "
    "hooks are, which gather its weight and reduce its gradient.",
    version="torch 2.15.0",
    upstream="what one layer computes for one call; nothing to report",
    remove_when="torchtitan's chunked loss hands the output layer to its loss function.",
    applied="to the output layer, for one call",
    where="atom/kernels/output_layer.py",
    sources={"torchtitan.components.loss:ChunkedLossWrapper": "6ed4d968"},
    unprobed="a kernel's interface and no fault",
)
SLEEP = Repair(
    target="torchtitan.trainer:time",
    reason="The first rank sleeps for 2 s at the end of training, until others may have ended.",
    version="torchtitan 0.3.0",
    upstream="docs/upstream/sleep.md",
    remove_when="Trainer.train ends with a barrier.",
    applied="while training; a barrier follows",
    where="atom/titan/train/trainer.py",
    replacement="atom.titan.compat.sleepless:TIME",
    sources={
        "torchtitan.trainer:time": "7b2ddb8a",
        "torchtitan.trainer:Trainer.train": "9a52335b.d2fe16fc",
    },
    probe=f"{_PROBES}:training_ends_with_a_sleep",
)
STAGING = Repair(
    target=f"{_STAGER}._offload_tensor",
    reason="A checkpoint that holds a view of a distributed tensor, with an offset into its "
    "storage, cannot be staged.",
    version="torch 2.15.0",
    upstream="docs/upstream/staging.md",
    remove_when="StateDictStager stages distributed tensors that have a storage offset.",
    applied="to a checkpoint that is saved in the background",
    where="atom/titan/compat/staging.py",
    sources={f"{_STAGER}._offload_tensor": "856307cc.bf7e6a43"},
    probe=f"{_PROBES}:views_of_distributed_tensors_are_not_staged",
)
CHECKSUMS = Repair(
    target="torch.utils.serialization.config:save.compute_crc32",
    reason="torch.save computes a checksum of each value, which takes most of the time of writing; "
    "ATOM hashes whole files.",
    version="torch 2.15.0",
    upstream="a setting of torch; nothing to report",
    remove_when="A writer of checkpoints can turn the checksums of its own files off.",
    applied="while a checkpoint is written",
    where="atom/titan/checkpoint/dcp.py",
    sources={"torch.utils.serialization.config:save.compute_crc32": "52feb8c0"},
    probe=f"{_PROBES}:values_have_a_checksum",
)

TRAINING = (
    MESH_DEVICE,
    INITIAL_WEIGHTS,
    CONTIGUOUS_STAGES,
    FORWARD_SCHEDULES,
    SUM_REDUCTION,
    LEARNING_RATES,
    STEP,
    CLIPPING,
    OUTPUT_LAYER,
    SLEEP,
    STAGING,
    CHECKSUMS,
)
