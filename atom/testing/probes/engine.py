"""Probe faults of torch, torchtitan, Triton and the process. The name of each function is the
fault.
"""

from __future__ import annotations

import inspect
import logging
import resource
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from atom.io.repair import replaced
from atom.testing.probes.records import records_of

# ---------------------------------------------------------------------------- at boot


def device_is_cuda_without_one() -> bool:
    from torchtitan.tools import utils

    return utils.device_type != "cpu"


def cpu_has_no_memory_statistics() -> bool:
    from torchtitan.components import metrics

    with replaced("torchtitan.components.metrics:device_module", torch.cpu):
        try:
            metrics.DeviceMemoryMonitor("cpu").get_peak_stats()
        except AttributeError:
            return True
    return False


def cpu_has_the_peak_of_a_gpu() -> bool:
    from torchtitan.tools.utils import get_peak_flops

    return 1e13 < get_peak_flops("CPU") < 1e17


def masks_are_compiled() -> bool:
    from torchtitan.models.common import attention

    return _is_compiled(attention._compiled_create_block_mask)


def context_parallel_masks_are_compiled() -> bool:
    from torch.distributed.tensor.experimental._context_parallel import _attention

    asked: list[Any] = []

    def compiled(function: Any, **_options: Any) -> Any:
        asked.append(function)
        return function

    def mask_mod(*_: Any) -> torch.Tensor:
        return torch.tensor(True)

    with replaced("torch:compile", compiled), _pretended_mesh() as mesh:
        _attention._create_cp_block_mask(mask_mod, 1, 1, 512, 512, (128, 128), mesh)
    return bool(asked)


def gloo_refuses_uneven_lists() -> bool:
    def exchange(group: Any, rank: int) -> None:
        sent, received = ((1, 2), (1, 3)) if rank == 0 else ((3, 4), (2, 4))
        inputs = [torch.ones(size) for size in sent]
        outputs = [torch.empty(size) for size in received]
        group.alltoall(outputs, inputs, dist.AllToAllOptions()).wait()

    return _refused(exchange)


def experts_round_to_bfloat16() -> bool:
    from torchtitan.models.common.moe import GroupedExperts

    torch.manual_seed(0)
    experts = GroupedExperts.Config(dim=16, hidden_dim=16, num_experts=1).build()
    with torch.no_grad():
        for weight in experts.parameters():
            weight.normal_()
        x_RD = torch.randn(8, 16)
        w1, w2, w3 = (weight[0].double() for weight in experts.parameters())
        names = [name for name, _ in experts.named_parameters()]
        assert names == ["w1_EFD", "w2_EDF", "w3_EFD"], names
        x = x_RD.double()
        exact = (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
        off = (experts(x_RD, torch.tensor([8])).double() - exact).abs().max() / exact.abs().max()
    return bool(off > 1e-4)  # the error of float32 is 1e-6


# ---------------------------------------------------------------------------- ranks


def threads_switch_every_5_ms() -> bool:
    return sys.getswitchinterval() > 5e-4


def freed_memory_faults_again() -> bool:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**21) for _ in range(16)]  # 128 MiB in all
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    faults()
    return faults() > 64  # 32,768 pages of 4 KiB, or 64 of 2 MiB


def process_group_takes_no_address() -> bool:
    from torchtitan.distributed.utils import init_distributed

    return not {"store", "init_method"} & set(inspect.signature(init_distributed).parameters)


def gloo_traces_name_no_group() -> bool:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as traced:
            dist.all_reduce(torch.ones(4))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            traced.export_chrome_trace(str(path))
            text = path.read_text()
    finally:
        dist.destroy_process_group()
    assert "gloo:all_reduce" in text, "gloo leaves no event"
    return "Process Group" not in text


def every_rank_logs_its_steps() -> bool:
    from torchtitan.components import metrics
    from torchtitan.tools.utils import NoColor

    sink = SimpleNamespace(log=lambda *_: None)
    memory = SimpleNamespace(
        get_peak_stats=lambda: metrics.DeviceMemStats(0.0, 0.0, 0.0, 0.0, 0, 0),
        reset_peak_stats=lambda: None,
    )
    processor = object.__new__(metrics.MetricsProcessor)
    vars(processor).update(
        num_flops_per_token=1,
        time_last_log=0.0,
        ntokens_since_last_log=1,
        parallel_dims=SimpleNamespace(non_data_parallel_size=1),
        has_quantization=False,
        gpu_peak_flops=1.0,
        config=SimpleNamespace(log_freq=1),
        data_loading_times=[0.0],
        device_memory_monitor=memory,
        logger=sink,
        color=NoColor(),
    )
    with _pretended_rank(1, 2), records_of("") as records:
        processor.log(1, 1.0, 1.0, 1.0)
    return any(record.funcName == "log" for record in records)


def torch_has_handlers_of_its_own() -> bool:
    return any(
        type(handler).__name__ == "_StderrHandler"
        for handler in logging.getLogger("torch").handlers
    )


# ---------------------------------------------------------------------------- models and steps


def mesh_takes_no_device() -> bool:
    from torchtitan.distributed import ParallelDims

    takes = {
        name
        for function in (ParallelDims, ParallelDims.from_config, ParallelDims.build_mesh)
        for name in inspect.signature(function).parameters
    }
    return not any("device" in name for name in takes)


def initial_weights_depend_on_the_layout() -> bool:
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    whole = torch.empty(4, 8).normal_()
    with _pretended_mesh(rank=1) as mesh:
        part = distribute_tensor(torch.empty(4, 8), mesh, [Shard(0)], src_data_rank=None)
        torch.manual_seed(0)
        part.normal_()
        own = part.to_local()
    return not torch.equal(own, whole[2:])


def strided_tensors_are_not_sent() -> bool:
    def send(group: Any, rank: int) -> None:
        if rank == 0:
            group.send([torch.ones(2, 3).t()], 1, 0).wait()
        else:
            group.recv([torch.empty(3, 2)], 0, 0).wait()

    return _refused(send)


def v_schedules_do_not_evaluate() -> bool:
    from torch.distributed.pipelining import PipelineStage, ScheduleZBVZeroBubble

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        stages: list[Any] = [
            PipelineStage(torch.nn.Linear(2, 2), number, 2, torch.device("cpu"))
            for number in range(2)
        ]
        schedule = ScheduleZBVZeroBubble(stages, 2, loss_fn=torch.nn.functional.mse_loss)
        x = torch.ones(2, 2)
        with torch.no_grad():
            schedule.eval(x, target=x, losses=[])
    except AssertionError as error:
        return "have backward" in str(error)
    finally:
        dist.destroy_process_group()
    return False


def gloo_lacks_scaled_sums() -> bool:
    def reduce(group: Any, _rank: int) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = dist._make_nccl_premul_sum(0.5)
        group.allreduce([torch.ones(4)], options).wait()

    return _refused(reduce)


def views_of_distributed_tensors_are_not_staged() -> bool:
    from torch.distributed.checkpoint._state_dict_stager import StateDictStager
    from torch.distributed.tensor import DTensor, Replicate

    with _pretended_mesh() as mesh:
        whole = DTensor.from_local(torch.ones(4, 4), mesh, [Replicate()], run_check=False)
        try:
            StateDictStager().stage({"view": whole[2:]})
        except RuntimeError as error:
            return "invalid python storage" in str(error)
    return False


def values_have_a_checksum() -> bool:
    from torch.utils.serialization import config

    return config.save.compute_crc32


def learning_rates_go_on_after_their_end() -> bool:
    from torchtitan.components.optimizer.lr_scheduler import LRSchedulersContainer

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    config = LRSchedulersContainer.Config(
        warmup_steps=0, total_steps=4, decay_ratio=1.0, decay_type="linear", min_lr_factor=0.0
    )
    schedule = config.build(optimizers=[optimizer], training_steps=4)
    rates = []
    for _ in range(8):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return any(rate < 0 for rate in rates)


def functions_have_no_override() -> bool:
    from torchtitan.config.override import override
    from torchtitan.distributed.utils import clip_grad_norm_

    try:
        override(target=clip_grad_norm_, description="a function")(lambda function: function)
    except (TypeError, ValueError, AssertionError):
        return True
    return False


def training_ends_with_a_sleep() -> bool:
    from torchtitan.trainer import Trainer

    return "sleep(" in inspect.getsource(Trainer.train)


# ---------------------------------------------------------------------------- Triton


def triton_needs_a_driver() -> bool:
    from triton.runtime.driver import DriverConfig

    try:
        DriverConfig().active  # noqa: B018
    except RuntimeError:
        return True
    return False


def triton_compiles_by_launching() -> bool:
    from triton.runtime.jit import JITFunction

    function = JITFunction(_doubled)
    try:
        function.run(torch.ones(1), grid=(1,), warmup=True)
    except RuntimeError:
        return True  # no driver: the target is not passed
    return False


def triton_times_on_a_gpu() -> bool:
    from triton.runtime.autotuner import Autotuner, Config

    tuner = Autotuner(_doubled, ["x"], [Config({})], [], None, None)
    tuner.nargs = {}
    try:
        tuner._bench(config=Config({}))
    except RuntimeError:
        return True
    return False


def _doubled(x: Any) -> None:  # pragma: no cover
    x * 2


# ---------------------------------------------------------------------------- tools


@contextmanager
def _pretended_rank(rank: int, ranks: int) -> Iterator[None]:
    """Act as one rank of a process group whose other ranks do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _pretended_mesh(rank: int = 0) -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    with _pretended_rank(rank, 2):
        yield init_device_mesh("cpu", (2,))


def _refused(work: Any) -> bool:
    """Return whether gloo refuses ``work(group, rank)``, run by two threads as two ranks."""
    store = dist.HashStore()

    def begin(rank: int) -> Exception | None:
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=5))
        try:
            work(group, rank)
        except (RuntimeError, ValueError) as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        return any(pool.map(begin, range(2)))


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable") or hasattr(
        function, "_torchdynamo_inline"
    )
