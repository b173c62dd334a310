"""Compile every kernel for sm_90, down to machine code, on a machine without a GPU.

Runs the operators' own launch code on CPU tensors with the launch itself replaced by a compilation
of exactly the arguments it was given. Prints a line for each kernel: its name, spilled bytes,
registers and shared memory.
"""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import torch
import triton
from tests.kernels.attention_cases import AttentionCase, AttentionInputs
from tests.kernels.lora_cases import batch_of, pool_of
from tests.kernels.rotary_cases import RotaryCase, RotaryInputs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

from baton.kernels.fused_linear import Norm, add_linear, normed_linear
from baton.kernels.lora import LoraWeights, lora_embed, lora_linear
from baton.kernels.paged_attention import paged_attention
from baton.kernels.paged_attention.hopper import extend_hopper
from baton.kernels.rms_norm import rms_norm
from baton.kernels.rotary_cache import rotary_cache
from baton.kernels.sampling import Filters, Noise, draw
from baton.kernels.swiglu import swiglu
from baton.kernels.token_mask import token_mask

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def compile_instead(
    kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kw: Any
) -> None:
    names = ("num_warps", "num_stages", "maxnreg")
    options = {name: kw.pop(name) for name in names if name in kw}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kw
    if "DEPENDENT" in values:
        values["DEPENDENT"] = options["launch_pdl"] = True
    signature, constants, hints = {}, {}, {}
    for i, param in enumerate(kernel.params):
        value = values[param.name]
        if param.is_constexpr or (isinstance(value, int) and value == 1):
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = TYPES[value.dtype]
            hints[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            box = f"{TYPES[value.base.dtype][1:]}{value.block_shape}"
            signature[param.name] = f"tensordesc<{box},{value.layout!r}>"
        else:
            signature[param.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                hints[(i,)] = [["tt.divisibility", 16]]
    source_type = GluonASTSource if kernel.is_gluon() else ASTSource
    source = source_type(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        built = triton.compile(source, target=TARGET, options=options)
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", report.getvalue()))
    registers = re.search(r"Used (\d+) registers", report.getvalue())
    # no report: the same arguments were compiled before
    if registers is not None:
        shared = f"shared {built.metadata.shared}"
        print(kernel.__name__, spilled, registers[0], shared, sep=", ")


def served_calls() -> list[Callable[[], object]]:
    """The shapes of an 8B model, the options that change the kernels' code among them."""
    case = AttentionCase(
        name="mixed", query_lens=(1, 3), context_lens=(1040, 3), kv_heads=8, group=4, head_dim=128
    )
    attention = AttentionInputs(case, torch.bfloat16)
    plain = attention.options
    problem = attention.problem()
    special = plain | {"sliding_window": 100, "soft_cap": 30.0}
    rotary = RotaryInputs(
        RotaryCase(name="norms", head_dim=128, rot_dim=64, q_norm=True, k_norm=True),
        torch.bfloat16,
    )
    x, weight = torch.zeros(2, 4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    logits, rows = torch.zeros(2, 128256), torch.zeros(1, dtype=torch.int64)
    bitmask = torch.zeros(1, 4008, dtype=torch.int32)
    return [
        lambda: paged_attention(*attention.tensors, **plain, backend="triton"),
        lambda: paged_attention(*attention.tensors, **special, backend="triton"),
        lambda: extend_hopper(problem, torch.empty_like(attention.q), programs=132),
        lambda: rotary_cache(*rotary.tensors, **rotary.norms, backend="triton"),
        lambda: rms_norm(x, weight, 1e-6, backend="triton"),
        lambda: swiglu(x, backend="triton"),
        lambda: token_mask(logits, bitmask, rows, backend="triton"),
        *fp8_calls(attention, rotary),
        *linear_calls(),
        *draw_calls(),
        *lora_calls(),
    ]


def fp8_calls(attention: AttentionInputs, rotary: RotaryInputs) -> list[Callable[[], object]]:
    """A pool of float8 with scales, written and read."""
    options = {**attention.options, "kv_scale": torch.ones(2, 8), "backend": "triton"}
    q, kv, *rows = attention.tensors
    q2, k2, v2, kv2, *tables = rotary.tensors
    scale = torch.ones(2, kv2.shape[2])
    stored, stored2 = kv.to(torch.float8_e4m3fn), kv2.to(torch.float8_e4m3fn)
    return [
        lambda: paged_attention(q, stored, *rows, **options),  # type: ignore[arg-type]
        lambda: rotary_cache(q2, k2, v2, stored2, *tables, kv_scale=scale, backend="triton"),
    ]


def draw_calls() -> list[Callable[[], object]]:
    """Greedy, and with noise and filters."""
    logits = torch.zeros(3, 128256, dtype=torch.bfloat16)
    noise = Noise(
        row_keys=torch.zeros(2, 3, dtype=torch.int32),
        token_keys=torch.zeros(128256, dtype=torch.int32),
        temperatures=torch.ones(3),
    )
    filters = Filters(
        rows=torch.zeros(1, dtype=torch.int64),
        min_ps=torch.zeros(1),
        top_ks=torch.ones(1, dtype=torch.int32),
        top_ps=torch.ones(1),
    )
    return [
        lambda: draw(logits, backend="triton"),
        lambda: draw(logits, noise, filters, backend="triton"),
    ]


def linear_calls() -> list[Callable[[], object]]:
    """One token and a few, each with everything fused and with nothing."""
    calls: list[Callable[[], object]] = []
    norm, weight = Norm(torch.zeros(4096, dtype=torch.bfloat16), 1e-6), torch.zeros(512, 4096)
    weight = weight.bfloat16()
    for num_tokens in (1, 16):
        x = torch.zeros(num_tokens, 4096, dtype=torch.bfloat16)
        calls += [
            lambda x=x: normed_linear(x, norm, weight, swiglu=True, backend="triton"),
            lambda x=x: add_linear(x[:, :512].contiguous(), x, weight, backend="triton"),
        ]
    return calls


def embedding_of(max_rank: int) -> LoraWeights:
    sizes = ((4096,), 32, [[max_rank]])
    return pool_of(*sizes, torch.bfloat16, "cpu", max_rank=max_rank, embedding=True)[0]


def lora_calls() -> list[Callable[[], object]]:
    """Decodes and prompts; slices, one slice, SwiGLU, an embedding; a small and a large rank."""
    calls: list[Callable[[], object]] = []
    for max_rank, num_tokens in ((16, 16), (64, 64)):
        ranks = [[max_rank] * 3]
        x = torch.zeros(num_tokens, 4096, dtype=torch.bfloat16)
        slots = [0] * num_tokens
        batches = [batch_of(slots, num_tokens, "cpu", few=few) for few in (True, False)]
        for heights in ((256, 128, 128), (256,), (256, 256)):
            sizes = (heights, 4096, [row[: len(heights)] for row in ranks])
            lora, _ = pool_of(*sizes, torch.bfloat16, "cpu", max_rank=max_rank)
            weight = torch.zeros(sum(heights), 4096, dtype=torch.bfloat16)
            swiglu = len(heights) == 2
            calls += [
                lambda x=x, w=weight, lora=lora, batch=batch, swiglu=swiglu: lora_linear(
                    x, w, None, lora, batch, swiglu=swiglu, backend="triton"
                )
                for batch in batches
            ]
        ids = torch.zeros(num_tokens, dtype=torch.int32)
        head = embedding_of(max_rank)
        calls.append(
            lambda x=x, ids=ids, head=head, batch=batches[0]: lora_embed(
                x, ids, head, batch, backend="triton"
            )
        )
    return calls


if __name__ == "__main__":
    triton.knobs.nvidia.dump_ptxas_log = True
    JITFunction.run = compile_instead
    for call in served_calls():
        call()
