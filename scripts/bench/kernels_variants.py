# ruff: noqa
# mypy: ignore-errors
"""Variants of memory-bound kernels beside each other, torch and a copy: which plan a wrapper should choose.

Each variant is a set of macros. All are compiled first, in parallel; each is checked against torch in fp32 before it is
timed, with nothing in the cache. Printed: microseconds, GB/s of what must move, percent of a copy.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from types import ModuleType

from torch import Tensor
from torch.nn import functional

from headrace.kernels import reference_fused as reference
from headrace.kernels.activation import bias_gelu, swiglu
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.build import Macro, Target, cubin
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rotary_kv import HeadNorm, KVPages, rotary_table
from headrace.kernels.rows import divisor
from headrace.testing.gpu_timing import Timer

DEVICE = torch.device("cuda", 0)
BF16 = torch.bfloat16


@dataclass(slots=True)
class Variant:
    source: str
    entry: str
    params: str
    label: str
    defines: dict[str, Macro]
    run: Callable[[Kernel], None]
    shared_bytes: int = 0


@dataclass(slots=True)
class Case:
    name: str
    moved_bytes: int
    torch: Callable[[], object] | None
    poison: Callable[[], object]
    error: Callable[[], float]
    variants: list[Variant] = field(default_factory=list)


def resident(kernel: Kernel, threads: int, shared_bytes: int) -> int:
    registers = -(-kernel.num_registers // 8) * 8 * threads
    return max(1, min(2048 // threads, 65536 // registers, 32, (227 << 10) // (shared_bytes + 2560)))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=BF16)


def far(ours: Tensor, wanted: Tensor) -> float:
    difference = (ours.float() - wanted.float()).norm() / wanted.float().norm()
    return float("inf") if difference.isnan() else difference.item()


def ends(x: Tensor) -> Tensor:
    return torch.cat((x[:300], x[-300:]))


# vecs, rows, threads, warp, stages, least blocks, one round, load hint
LAYER_NORMS = {
    1024: [
        (1, 2, 128, 0, 0, 1, 0, 0),
        (1, 2, 128, 0, 0, 1, 0, 1),
        (1, 2, 128, 0, 0, 1, 1, 1),
        (1, 2, 128, 0, 0, 12, 1, 1),
        (1, 2, 128, 0, 0, 12, 1, 0),
        (1, 2, 128, 0, 0, 12, 1, 2),
        (1, 1, 128, 0, 0, 16, 1, 1),
        (2, 1, 64, 0, 0, 20, 1, 1),
        (2, 2, 64, 0, 0, 1, 1, 1),
        (4, 1, 128, 1, 0, 8, 1, 1),
        (4, 1, 64, 1, 0, 16, 1, 1),
        (4, 1, 128, 1, 0, 8, 0, 1),
        (4, 1, 128, 1, 3, 1, 0, 1),
        (4, 1, 128, 1, 3, 1, 1, 1),
        (4, 1, 128, 1, 2, 1, 1, 1),
        (2, 1, 64, 0, 3, 1, 1, 1),
    ],
    4096: [
        (2, 1, 256, 0, 0, 1, 0, 0),
        (2, 1, 256, 0, 0, 1, 0, 1),
        (2, 1, 256, 0, 0, 1, 1, 1),
        (2, 1, 256, 0, 0, 6, 1, 1),
        (2, 1, 256, 0, 0, 6, 1, 0),
        (2, 1, 256, 0, 0, 6, 1, 2),
        (1, 1, 512, 0, 0, 4, 1, 1),
        (1, 1, 512, 0, 0, 4, 1, 0),
        (4, 1, 128, 0, 0, 8, 1, 1),
        (4, 1, 128, 0, 0, 8, 0, 1),
        (4, 1, 128, 0, 3, 1, 0, 1),
        (4, 1, 128, 0, 3, 1, 1, 1),
        (4, 1, 128, 0, 2, 1, 1, 1),
        (2, 1, 256, 0, 3, 1, 1, 1),
    ],
}


def layer_norms() -> Iterator[Case]:
    for n, width in ((65536, 1024), (16384, 4096), (65536, 4096)):
        x, w, b, out = normal(n, width) + 3, normal(width), normal(width), normal(n, width)
        case = Case(
            f"layer_norm/{n}x{width}",
            2 * x.nbytes,
            partial(functional.layer_norm, x, [width], w, b, 1e-5),
            partial(out.fill_, torch.nan),
            lambda x=x, w=w, b=b, out=out, width=width: far(
                ends(out), functional.layer_norm(ends(x).float(), [width], w.float(), b.float(), 1e-5)
            ),
        )
        for vecs, rows, threads, warp, stages, least, once, hint in LAYER_NORMS[width]:
            shared = stages * rows * vecs * threads * 16

            def run(
                k: Kernel,
                *,
                rows=rows,
                threads=threads,
                warp=warp,
                stages=stages,
                shared=shared,
                x=x,
                w=w,
                b=b,
                out=out,
            ) -> None:
                blocks = -(-x.shape[0] // (rows * (threads // 32 if warp else 1)))
                if stages:
                    blocks = min(blocks, 132 * resident(k, threads, shared))
                k((blocks,), (threads,), out, x, None, None, w, b, x.shape[0], x.shape[1], 1e-5, shared_bytes=shared)

            case.variants.append(
                Variant(
                    "layer_norm",
                    "layer_norm",
                    "PPPPPPqif",
                    f"vecs={vecs} rows={rows} threads={threads} warp={warp} stages={stages} blocks>={least} one_round={once} load={hint}",
                    dict(
                        DTYPE="__nv_bfloat16",
                        VEC=8,
                        VECS=vecs,
                        ROWS=rows,
                        THREADS=threads,
                        WARP_A_ROW=warp,
                        RESIDUAL=0,
                        BIASED=0,
                        STAGES=stages,
                        MIN_BLOCKS=least,
                        ONE_ROUND=once,
                        EVEN=once,
                        HINT_LOAD=hint,
                    ),
                    run,
                    shared,
                )
            )
        yield case


def softmaxes() -> Iterator[Case]:
    # vecs, rows, threads, warp, stages, least blocks, even, load hint, store hint
    plans = {
        512: [
            (2, 1, 128, 1, 0, 1, 0, 0, 0),
            (2, 1, 128, 1, 0, 1, 1, 0, 0),
            (2, 1, 128, 1, 0, 1, 1, 0, 1),
            (2, 1, 128, 1, 0, 1, 1, 1, 0),
            (2, 1, 128, 1, 0, 1, 1, 1, 1),
            (2, 1, 128, 1, 0, 1, 1, 2, 1),
            (2, 1, 256, 1, 0, 1, 1, 1, 1),
            (2, 1, 64, 1, 0, 1, 1, 1, 1),
        ],
        1024: [
            (4, 1, 128, 1, 0, 6, 0, 0, 0),
            (4, 1, 128, 1, 0, 10, 1, 0, 0),
            (4, 1, 128, 1, 0, 10, 1, 0, 1),
            (4, 1, 128, 1, 0, 10, 1, 1, 1),
            (4, 1, 128, 1, 0, 10, 1, 2, 1),
            (4, 1, 128, 1, 0, 12, 1, 1, 1),
            (4, 1, 64, 1, 0, 20, 1, 1, 1),
            (4, 1, 256, 1, 0, 5, 1, 1, 1),
            (1, 1, 128, 0, 0, 16, 1, 1, 1),
            (1, 2, 128, 0, 0, 1, 1, 1, 1),
            (2, 1, 64, 0, 0, 16, 1, 1, 1),
            (4, 1, 128, 1, 3, 6, 1, 1, 1),
        ],
        8192: [
            (2, 1, 512, 0, 0, 4, 0, 0, 0),
            (2, 1, 512, 0, 0, 4, 1, 0, 0),
            (2, 1, 512, 0, 0, 4, 1, 0, 1),
            (2, 1, 512, 0, 0, 4, 1, 1, 1),
            (2, 1, 512, 0, 0, 4, 1, 2, 1),
            (1, 1, 1024, 0, 0, 2, 1, 1, 1),
            (4, 1, 256, 0, 0, 5, 1, 1, 1),
            (4, 1, 256, 0, 4, 3, 1, 1, 1),
        ],
    }
    for batch, length in ((16, 512), (4, 1024), (1, 8192)):
        scores = normal(batch, 16, min(length, 1024), length)
        out = torch.empty_like(scores)
        seen = torch.rand(batch, 1, 1, length, device=DEVICE) < 0.9
        for mask, scale in ((None, 1.0), (seen, 0.125)):

            def wanted(scores=scores, mask=mask, scale=scale) -> Tensor:
                x = scores * scale if scale != 1.0 else scores
                return (x if mask is None else x.masked_fill(~mask, -torch.inf)).softmax(dim=-1)

            def error(scores=scores, mask=mask, scale=scale, out=out) -> float:
                worst = 0.0
                for batch in (0, -1):
                    x = scores[batch].float() * scale
                    x = x if mask is None else x.masked_fill(~mask[batch], -torch.inf)
                    worst = max(worst, far(out[batch], x.softmax(dim=-1)))
                return worst

            shape = "x".join(str(extent) for extent in scores.shape)
            name = f"softmax/{'' if mask is None else 'masked_'}{shape}"
            case = Case(name, 2 * scores.nbytes, wanted, partial(out.fill_, torch.nan), error)
            for vecs, rows, threads, warp, stages, least, even, hint, keep in plans[length]:
                for magic in (1,):
                    shared = stages * rows * vecs * threads * 16

                    def run(
                        k: Kernel,
                        *,
                        rows=rows,
                        threads=threads,
                        warp=warp,
                        stages=stages,
                        shared=shared,
                        scores=scores,
                        mask=mask,
                        scale=scale,
                        out=out,
                    ) -> None:
                        batch, heads, queries, length = scores.shape
                        n = batch * heads * queries
                        blocks = -(-n // (rows * (threads // 32 if warp else 1)))
                        if stages:
                            blocks = min(blocks, 132 * resident(k, threads, shared))
                        strides = (0, 0, 0) if mask is None else mask.expand(scores.shape).stride()[:3]
                        k(
                            (blocks,),
                            (threads,),
                            out,
                            scores,
                            mask,
                            n,
                            length,
                            scale,
                            heads,
                            queries,
                            *strides,
                            *divisor(queries),
                            *divisor(heads),
                            shared_bytes=shared,
                        )

                    case.variants.append(
                        Variant(
                            "softmax",
                            "softmax",
                            "PPPqifiiqqqIiIi",
                            f"vecs={vecs} rows={rows} threads={threads} warp={warp} stages={stages} blocks>={least} even={even} load={hint} store={keep}",
                            dict(
                                DTYPE="__nv_bfloat16",
                                VEC=8,
                                VECS=vecs,
                                ROWS=rows,
                                THREADS=threads,
                                WARP_A_ROW=warp,
                                STAGES=stages,
                                MIN_BLOCKS=least,
                                MAGIC=magic,
                                EVEN=even,
                                HINT_LOAD=hint,
                                HINT_STORE=keep,
                                MASK=int(mask is not None),
                                MASK_ALIGNED=int(mask is not None),
                            ),
                            run,
                            shared,
                        )
                    )
            yield case


def page_moves() -> Iterator[Case]:
    pages = normal(4, 4096, 2, 8, 16, 128)
    page_bytes = pages[0, 0].nbytes
    strides = [stride * 2 for stride in pages.stride()[:2]]
    for count in (256, 2048):
        order = torch.randperm(4096, device=DEVICE)
        source, target = order[:count], order[-count:]
        moves = torch.stack((source, target), dim=1).to(torch.int32).contiguous()

        def move(source=source, target=target) -> None:
            pages[:, target] = pages[:, source]

        def poison(target=target) -> None:
            pages[:, target] = torch.nan

        case = Case(
            f"page_copy/{count}x4x64KiB",
            8 * count * page_bytes,
            move,
            poison,
            lambda source=source, target=target: far(pages[:, target], pages[:, source]),
        )
        for threads, vecs, once, hint in (
            (256, 4, 0, 0),
            (512, 4, 0, 0),
            (1024, 4, 0, 0),
            (1024, 2, 0, 0),
            (512, 8, 0, 0),
            (1024, 4, 1, 2),
            (512, 4, 1, 2),
            (512, 2, 0, 0),
            (1024, 4, 2, 0),
        ):

            def run(k: Kernel, *, threads=threads, vecs=vecs, count=count, moves=moves) -> None:
                num_vecs = page_bytes // 16
                k((-(-num_vecs // (vecs * threads)), count, 4), (threads,), pages, moves, *strides, num_vecs)

            case.variants.append(
                Variant(
                    "page_copy",
                    "page_copy",
                    "PPqqi",
                    f"threads={threads} vecs={vecs} once={once} load={hint}",
                    dict(THREADS=threads, VECS=vecs, ONCE=once, HINT_LOAD=hint),
                    run,
                )
            )
        yield case


def rotaries() -> Iterator[Case]:
    for name, heads, normed, n in (
        ("q06", 16, True, 16384),
        ("q06", 16, True, 65536),
        ("l8b", 32, False, 65536),
        ("q06", 16, True, 2048),
    ):
        qkv, query = normal(n, (heads + 16) * 128), normal(n, heads, 128)
        memory = normal(n // 16, 2, 8, 16, 128)
        table = torch.randperm(n // 16, device=DEVICE).to(torch.int32)[None]
        pages = KVPages(memory[:, 0], memory[:, 1], table)
        positions = torch.arange(n, device=DEVICE)
        rows = torch.zeros(n, device=DEVICE, dtype=torch.int32)
        rotary = rotary_table(positions, 5e5 ** -(torch.arange(0, 128, 2, device=DEVICE) / 128))
        norm = HeadNorm(normal(128), normal(128), 1e-6) if normed else None
        again = torch.empty_like(memory)
        again_pages = KVPages(again[:, 0], again[:, 1], table)
        wanted = reference.rotary_kv(qkv, positions, again_pages, num_heads=heads, rotary=rotary, norm=norm, rows=rows)

        def poison(query=query, memory=memory) -> None:
            query.fill_(torch.nan)
            memory.fill_(torch.nan)

        def error(query=query, memory=memory, wanted=wanted, again=again) -> float:
            return max(far(ends(query), ends(wanted)), far(memory[:50], again[:50]), far(memory[-50:], again[-50:]))

        case = Case(f"rotary_kv/{name}_{n}", 2 * qkv.nbytes + 2 * rotary.cosines.nbytes, None, poison, error)
        for threads in (128, 256, 64):
            for turns, shared_angles, least in (
                ((2, 1, 8), (3, 1, 7))
                if threads == 128
                else ((1, 1, 4), (2, 1, 4))
                if threads == 256
                else ((2, 1, 16),)
            ):

                def run(
                    k: Kernel,
                    *,
                    threads=threads,
                    qkv=qkv,
                    query=query,
                    heads=heads,
                    rotary=rotary,
                    norm=norm,
                    positions=positions,
                    rows=rows,
                    pages=pages,
                ) -> None:
                    k(
                        (qkv.shape[0], 1),
                        (threads,),
                        query,
                        heads * 128,
                        qkv,
                        qkv.shape[1],
                        heads,
                        8,
                        rotary.cosines,
                        rotary.sines,
                        None if norm is None else norm.query,
                        None if norm is None else norm.key,
                        1e-6,
                        positions,
                        rows,
                        pages.keys,
                        pages.values,
                        *pages.keys.stride()[:3],
                        pages.page_table,
                        pages.page_table.shape[1],
                        16,
                    )

                case.variants.append(
                    Variant(
                        "rotary_kv",
                        "rotary_kv",
                        "PqPqiiPPPPfPPPPqqqPii",
                        f"threads={threads} turns={turns} shared={shared_angles} blocks>={least}",
                        dict(
                            DTYPE="__nv_bfloat16",
                            HEAD_DIM=128,
                            ROTARY_DIM=128,
                            INTERLEAVED=0,
                            NORMED=int(normed),
                            VEC=8,
                            LANES=8,
                            TURNS=turns,
                            THREADS=threads,
                            POSITION="int64_t",
                            BLOCKS=least,
                        ),
                        run,
                    )
                )
        yield case


class Recorded(Exception):
    pass


def others() -> Iterator[Case]:
    """Kernels by their own wrappers, whose loads are hinted otherwise."""
    for n, width in ((65536, 1024), (16384, 4096), (65536, 4096)):
        x, w, b, out, residual = normal(n, width), normal(width), normal(width), normal(n, width), normal(n, width)
        none = lambda: None  # noqa: E731
        right = lambda: 0.0  # noqa: E731
        wanted = [
            (f"rms_norm/{n}x{width}", 2, module_of(rms_norm), partial(rms_norm, x, w, 1e-6, out=out)),
            (
                f"rms_norm/residual_{n}x{width}",
                4,
                module_of(rms_norm),
                partial(rms_norm, x, w, 1e-6, residual=residual, out=out),
            ),
            (
                f"layer_norm/bias_residual_{n}x{width}",
                4,
                module_of(layer_norm),
                partial(layer_norm, x, w, b, 1e-5, residual=residual, input_bias=w, out=out),
            ),
            (f"bias_gelu/{n}x{width}", 2, module_of(bias_gelu), partial(bias_gelu, x, b, out=out)),
            (f"unbiased_gelu/{n}x{width}", 2, module_of(bias_gelu), partial(bias_gelu, x, None, out=out)),
            (
                f"swiglu/{n}x{width // 2}",
                1.5,
                module_of(swiglu),
                partial(swiglu, x, out=out[:, : width // 2].contiguous()),
            ),
        ]
        for name, times, module, operation in wanted:
            case = Case(name, int(times * x.nbytes), None, none, right)
            for hint in (0, 1, 2):
                case.variants.append(hinted(module, operation, hint))
            yield case


def module_of(function: Callable[..., object]) -> ModuleType:
    return sys.modules[function.__module__]


def hinted(module: ModuleType, operation: Callable[[], object], hint: int) -> Variant:
    """Ask a wrapper for its kernel, and launch that one with another hint."""
    real, asked, launched = module.load, {}, {}

    def record(source: str, entry: str, params: str, device: torch.device, **defines: Macro) -> Callable[..., None]:
        asked.update(source=source, entry=entry, params=params, defines=defines)

        def launch(*arguments: object, **named: object) -> None:
            launched.update(arguments=arguments, named=named)

        return launch

    module._kernel.cache_clear()
    module.load = record
    try:
        operation()
    finally:
        module.load = real
        module._kernel.cache_clear()

    def run(kernel: Kernel) -> None:
        kernel(*launched["arguments"], **launched["named"])

    return Variant(
        asked["source"], asked["entry"], asked["params"], f"load={hint}", {**asked["defines"], "HINT_LOAD": hint}, run
    )


GROUPS = {
    "others": others,
    "layer_norm": layer_norms,
    "softmax": softmaxes,
    "page_copy": page_moves,
    "rotary_kv": rotaries,
}


def main() -> None:
    wanted = sys.argv[1:] or list(GROUPS)
    arch = open_device(0).arch
    # Cases hold gigabytes: one after the other; their kernels are known without them.
    targets = {}
    for name in wanted:
        for case in GROUPS[name]():
            for v in case.variants:
                targets[Target.of(v.source, arch, v.defines)] = v
        torch.cuda.empty_cache()
    failed = set()

    def compile_one(target: Target) -> None:
        try:
            cubin(target)
        except Exception as error:  # a variant that does not compile is shown, and the others measured
            failed.add(target)
            print("DOES NOT COMPILE", target, error, flush=True)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(compile_one, targets))
    print(len(targets), "kernels compiled", flush=True)
    timer = Timer(DEVICE)
    limit = timer.copy_gb_per_s()
    print(f"copy: {limit:.0f} GB/s", flush=True)
    for name in wanted:
        for case in GROUPS[name]():
            rows = []
            for v in case.variants:
                if Target.of(v.source, arch, v.defines) in failed:
                    continue
                try:
                    kernel = load(v.source, v.entry, v.params, DEVICE, shared_bytes=v.shared_bytes, **v.defines)
                    case.poison()
                    v.run(kernel)
                    torch.cuda.synchronize()
                    rows.append((v.label, kernel, case.error(), partial(v.run, kernel)))
                except Exception as error:
                    print("FAILED", case.name, v.label, error, flush=True)
                    if "illegal" in str(error) or "unspecified" in str(error):
                        raise
            operations = [row[3] for row in rows] + ([case.torch] if case.torch else [])
            times = timer.medians_us(operations, 15)
            print(f"\n{case.name}")
            for (label, kernel, error, _), time in zip(rows, times, strict=False):
                rate = case.moved_bytes / time / 1e3
                wrong = "" if error < 1e-2 else "  WRONG"
                print(
                    f"  {time:8.1f} us {rate:6.0f} GB/s {100 * rate / limit:5.1f} %  regs {kernel.num_registers:3d} local {kernel.local_bytes} error {error:.1e}  {label}{wrong}"
                )
            if case.torch:
                rate = case.moved_bytes / times[-1] / 1e3
                print(f"  {times[-1]:8.1f} us {rate:6.0f} GB/s {100 * rate / limit:5.1f} %  torch", flush=True)
            del rows, operations
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
