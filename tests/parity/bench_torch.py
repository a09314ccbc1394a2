"""Times the PyTorch step of one named size (`stvl.plan.steps.STEPS`) as `stvl bench step` times stvl's.

    python -m tests.parity.bench_torch b16-4f --dtype bf16

prints a row of `TorchRow` as JSON in its last line. bfloat16 is autocast over f32 parameters, attention is SDPA by the
fastest of torch's kernels for the shape, the model is compiled, AdamW is fused. `bench_step` compares it with stvl.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stvl.dist.peak import BF16_PEAK
from stvl.models.flops import train_flops
from stvl.plan.steps import StepPlan, step_experiment

from .torch_step import Blocks, Setting, Step, dual_loss

#: torch's kernels of SDPA, by the switch that turns each on.
KERNELS = {"flash": "enable_flash_sdp", "cudnn": "enable_cudnn_sdp", "efficient": "enable_mem_efficient_sdp"}
COMPILE = ("model", "blocks", "off")


@dataclasses.dataclass(frozen=True)
class TorchPlan:
    """What to measure.

    Attributes:
        name: of the step.
        dtype: ``f32``, ``bf16``, or ``auto``: bf16 on a GPU.
        batch: clips instead of the size's own.
        compile: ``model``, ``blocks`` (each block by itself, which compiles faster) or ``off``.
        sdpa: a name of `KERNELS`, ``best`` for the fastest of them (GPU), or ``torch`` for torch's own choice.
        blocks: ``timm``, ``own``, or ``auto``: timm's where it is installed.
        budget: seconds to spend on one time.
    """

    name: str
    dtype: str = "auto"
    batch: int | None = None
    compile: str = "model"
    sdpa: str = "best"
    blocks: str = "auto"
    budget: float = 5.0


@dataclasses.dataclass(frozen=True)
class TorchRow:
    """One step, measured; the fields are those of `stvl.plan.measure.StepRow`, and

    Attributes:
        blocks: whose EVA-02 blocks.
        compile: as in the plan.
        sdpa: the kernel that was left on, or ``torch``.
        sdpa_seconds: forward and backward of the video tower's attention by each kernel, where they were tried.
        first_seconds: of the first step, compilation included.
        allocated, reserved: peaks of torch's allocator in bytes; None on a CPU.
        versions: of what took part.
    """

    shape: str
    frames: int
    batch: int
    dtype: str
    blocks: str
    compile: str
    sdpa: str = "torch"
    sdpa_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""
    parameters: int = 0
    first_seconds: float | None = None
    seconds: float | None = None
    fastest: float | None = None
    spread: float | None = None
    measurements: int | None = None
    in_flight: int | None = None
    clips_per_second: float | None = None
    model_flops: int | None = None
    mfu: float | None = None
    matmul: float | None = None
    share: float | None = None
    allocated: int | None = None
    reserved: int | None = None
    loss: float | None = None
    device: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


def wait() -> None:
    """Until the device has done what it was sent."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[int], Any], budget: float) -> dict[str, Any]:
    """Times of ``call(number)`` under the names of a row, by the rules of `stvl.ops.bench.timing.measure`."""
    import torch

    for number in range(2):
        start = time.perf_counter()
        call(number)
        wait()
        once = time.perf_counter() - start
    in_flight = max(1, min(50, round(0.02 / max(once, 1e-6)))) if torch.cuda.is_available() else 1
    fewest = 5 if once < budget else 3
    seconds: list[float] = []
    begin, sent = time.perf_counter(), 0
    while len(seconds) < fewest or (len(seconds) < 30 and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        for _ in range(in_flight):
            sent += 1
            call(sent)
        wait()
        seconds.append((time.perf_counter() - start) / in_flight)
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "spread": (high - low) / middle,
        "measurements": len(seconds),
        "in_flight": in_flight,
    }


def matmul_ceiling(dtype: Any, device: str) -> float:
    """FLOP/s of a square matrix product, in its fastest run; sizes as in stvl's."""
    import torch

    size = 1536 if device == "cpu" else 8192
    sets = [tuple(torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)) for _ in range(2)]
    return 2 * size**3 / timed(lambda number: torch.matmul(*sets[number % 2]), 1.0)["fastest"]


@contextlib.contextmanager
def only(kernel: str, math: bool) -> Iterator[None]:
    """With one kernel of SDPA switched on, and perhaps the plain products; ``torch`` leaves all as they are."""
    import torch

    switches = torch.backends.cuda
    names = [] if kernel == "torch" else list(KERNELS)
    for name in names:
        getattr(switches, KERNELS[name])(name == kernel)
    if names:
        switches.enable_math_sdp(math)
    try:
        yield
    finally:
        for name in names:
            getattr(switches, KERNELS[name])(True)
        switches.enable_math_sdp(True)


def sdpa_seconds(shape: tuple[int, int, int, int], dtype: Any) -> dict[str, float]:
    """Forward and backward by each kernel on inputs (b, h, n, e); a kernel that declines is left out."""
    import torch

    q, k, v, pull = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def both(number: int) -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).backward(pull)

    found = {}
    for kernel in KERNELS:
        with only(kernel, math=False):
            try:
                found[kernel] = timed(both, 0.2)["seconds"]
            except RuntimeError as problem:
                print(f"sdpa {kernel}: {str(problem).splitlines()[0]}", file=sys.stderr)
    return found


def compiled(step: Step, how: str) -> None:
    """Have the step's model compiled at its first call."""
    import torch

    if how == "model":
        step.loss = torch.compile(step.model)
    elif how == "blocks":
        for block in (*step.model.video.blocks, *step.model.text.text_model["encoder"]["layers"]):
            block.compile()


def blank(plan: TorchPlan) -> TorchRow:
    """The row with what is known before anything has run."""
    import torch

    on_gpu = torch.cuda.is_available()
    experiment = step_experiment(plan.name, StepPlan(batch=plan.batch))
    dtype = {"f32": "float32", "bf16": "bfloat16"}.get(plan.dtype, "bfloat16" if on_gpu else "float32")
    blocks = plan.blocks
    if blocks == "auto":
        blocks = "timm" if importlib.util.find_spec("timm") else "own"
        if blocks == "own":
            print(
                "timm is not installed: the blocks are those of tests/parity/torch_step.py", file=sys.stderr
            )
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if blocks == "timm":
        versions["timm"] = importlib.metadata.version("timm")
    if on_gpu:
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    frames, batch = experiment.loader.frames, experiment.loader.batch
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    flops = train_flops(experiment.model, frames, experiment.tokenizer.context_length, batch)
    return TorchRow(
        plan.name,
        frames,
        batch,
        dtype,
        blocks,
        plan.compile,
        model_flops=flops,
        device=device,
        versions=versions,
    )


def measured(plan: TorchPlan) -> TorchRow:
    """Measure one step on the first GPU, or on the CPU where there is none."""
    import torch

    row = blank(plan)
    # As jax does with products in f32 by itself; only the heads are f32 here.
    torch.set_float32_matmul_precision("high")
    try:
        return _measured(plan, row)
    except RuntimeError as problem:
        words = str(problem).strip().splitlines() or [type(problem).__name__]
        return dataclasses.replace(row, reason=f"fails: {words[0][:300]}")


def _measured(plan: TorchPlan, row: TorchRow) -> TorchRow:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, experiment = getattr(torch, row.dtype), step_experiment(plan.name, StepPlan(batch=plan.batch))
    video = experiment.model.video
    kernel, tried = plan.sdpa, {}
    if plan.sdpa == "best" and device == "cuda":
        heads, tokens = video.heads, 1 + row.frames * video.side**2
        tried = sdpa_seconds((row.batch, heads, tokens, video.width // heads), dtype)
        kernel = min(tried, key=lambda name: tried[name]) if tried else "torch"
        torch.cuda.empty_cache()
    kernel = "torch" if kernel == "best" else kernel
    blocks: Blocks = "timm" if row.blocks == "timm" else "own"
    torch.manual_seed(0)
    with torch.device(device):
        model = dual_loss()(experiment.model, row.frames, Setting(row.dtype, blocks)).to(device)
    step = Step(model, Setting(row.dtype, blocks))
    compiled(step, plan.compile)
    sets = [batch(experiment, row.batch, seed, device) for seed in (2, 3)]
    parameters = sum(p.numel() for p in model.parameters())
    row = dataclasses.replace(row, sdpa=kernel, sdpa_seconds=tried, parameters=parameters)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # The texts' attention may be one that the kernel declines.
    with only(kernel, math=True):
        start = time.perf_counter()
        step(*sets[0])
        wait()
        first = time.perf_counter() - start
        times = timed(lambda number: step(*sets[number % 2]), plan.budget)
        loss = float(step(*sets[0]))
    if not math.isfinite(loss):
        return dataclasses.replace(
            row, loss=loss, reason=f"wrong: the loss is {loss:g} after the timed steps"
        )
    if device == "cuda":
        peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        row = dataclasses.replace(row, **peaks)
    return _with_rates(dataclasses.replace(row, **times, first_seconds=first, loss=loss), dtype, device)


def _with_rates(row: TorchRow, dtype: Any, device: str) -> TorchRow:
    rate = (row.model_flops or 0) / (row.seconds or 1.0)
    peak = next((BF16_PEAK[kind] for kind in BF16_PEAK if row.device.startswith(kind)), None)
    matmul = matmul_ceiling(dtype, device)
    return dataclasses.replace(
        row,
        clips_per_second=row.batch / (row.seconds or 1.0),
        mfu=None if peak is None else rate / peak,
        matmul=matmul,
        share=rate / matmul,
    )


def batch(experiment: Any, rows: int, seed: int, device: str) -> tuple[Any, Any]:
    """Frames of noise and random words on the device, as `stvl.plan.resident.random_batch` makes them."""
    import torch

    size, text = experiment.model.video.image_size, experiment.model.text
    made = torch.Generator(device).manual_seed(seed)
    shape = (rows, experiment.loader.frames, size, size, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=made)
    length = experiment.tokenizer.context_length
    return video, torch.randint(0, text.vocabulary, (rows, length), device=device, generator=made)


def main(argv: Sequence[str]) -> int:
    """Print the row of one step as JSON."""
    words = argparse.ArgumentParser(prog="python -m tests.parity.bench_torch", description=__doc__)
    words.add_argument("name")
    words.add_argument("--dtype", choices=("auto", "f32", "bf16"), default="auto")
    words.add_argument("--batch", type=int)
    words.add_argument("--compile", choices=COMPILE, default="model")
    words.add_argument("--sdpa", choices=("best", "torch", *KERNELS), default="best")
    words.add_argument("--blocks", choices=("auto", "timm", "own"), default="auto")
    words.add_argument("--budget", type=float, default=5.0)
    row = measured(TorchPlan(**vars(words.parse_args(argv))))
    print(json.dumps(dataclasses.asdict(row)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
