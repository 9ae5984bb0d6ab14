"""Compile every Triton kernel as it is launched at the paper's shapes, for GPUs this machine need not have.

The ops of every SPEC run forward and backward on ``meta`` tensors; what they would launch is recorded and compiled
ahead of time. The gate fails on a spilled register, on more shared memory than there is, on a matrix kernel that does
not use the tensor cores, and on tensor descriptors that are not read by the TMA unit.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.accuracy import named_tensors
from ..kernels.backend import choose, needs_triton, use_backend
from ..kernels.spec import Case, Spec
from ..kernels.specs import SPECS
from ..kernels.triton_runtime import HAS_TRITON, INTERPRETING, Launch, record_launches

ARCHITECTURES = (80, 90)
INFORMATIVE_ARCHITECTURE = 100
SHARED_MEMORY_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
"""What one program can have (CUDA C++ Programming Guide, compute capabilities: shared memory per block)."""

_META = torch.device("meta")
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_TENSOR_CORE_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")
_TMA_INSTRUCTION = "cp.async.bulk.tensor"


@dataclass(frozen=True)
class PaperLaunch:
    """A kernel launch of an op's paper-shaped case."""

    spec: Spec
    case: Case
    launch: Launch
    place: tuple[int, int] = (0, 0)
    """Which case of all, and which of its launches."""


@dataclass(frozen=True)
class CompiledKernel:
    """What a kernel became for one architecture: registers a thread, shared memory and spilled bytes, instruction."""

    op: str
    case: str
    kernel: str
    architecture: int
    warps: int
    registers: int
    shared_bytes: int
    spilled_bytes: int
    multiplies_matrices: bool
    tensor_core_instruction: str
    declared: bool
    """Whether the SPEC says ``tensor_cores``."""
    idle_descriptors: bool
    """Whether it is given tensor descriptors and has no instruction of the TMA unit."""

    @property
    def problems(self) -> list[str]:
        """What the gate fails on in this kernel."""
        name = f"{self.op} ({self.case}): {self.kernel} on sm_{self.architecture}"
        found = []
        if self.spilled_bytes:
            found.append(f"{name} spills {self.spilled_bytes} bytes a thread")
        if self.shared_bytes > SHARED_MEMORY_BYTES[self.architecture]:
            limit = SHARED_MEMORY_BYTES[self.architecture]
            found.append(f"{name} takes {self.shared_bytes} bytes of shared memory, there are {limit}")
        if self.multiplies_matrices and not self.tensor_core_instruction:
            found.append(f"{name} multiplies matrices without the tensor cores")
        if self.multiplies_matrices and not self.declared:
            found.append(f"{name} multiplies matrices, and its SPEC does not say tensor_cores=True")
        if self.idle_descriptors:
            found.append(f"{name} takes tensor descriptors and reads them without the TMA unit")
        return found


def problems(kernels: Sequence[CompiledKernel]) -> list[str]:
    """Return what the gate fails on: no problem of an architecture that is information counts."""
    counted = [kernel for kernel in kernels if kernel.architecture in ARCHITECTURES]
    found = [problem for kernel in counted for problem in kernel.problems]
    multiplying = {kernel.op for kernel in kernels if kernel.multiplies_matrices}
    idle = sorted({kernel.op for kernel in kernels if kernel.declared} - multiplying)
    return found + [f"{op}: its SPEC says tensor_cores=True, and no kernel of it multiplies matrices" for op in idle]


def compile_kernels(architectures: Sequence[int]) -> list[CompiledKernel]:
    """Compile every distinct launch for each of ``architectures`` (90 is sm_90), one row each.

    Raises InputError for another architecture, without Triton, or where kernels were defined for its interpreter.
    """
    if not HAS_TRITON:
        raise InputError("the compile gate needs Triton, which is not installed; `pip install triton`")
    for architecture in architectures:
        if architecture not in SHARED_MEMORY_BYTES:
            known = ", ".join(map(str, SHARED_MEMORY_BYTES))
            raise InputError(f"architecture {architecture} is unknown to the compile gate; expected some of {known}")
    if INTERPRETING:
        raise InputError("TRITON_INTERPRET=1 is set, and the interpreter compiles nothing; unset it")
    jobs = [(paper, architecture) for architecture in architectures for paper in paper_launches(architecture)]
    jobs.sort(key=lambda job: job[0].place)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda job: compile_launch(*job), jobs))


def paper_launches(architecture: int, dtype: torch.dtype = torch.bfloat16) -> list[PaperLaunch]:
    """Return the distinct launches of all fused ops' paper-shaped cases in ``dtype``, each where it is first made.

    Of an op's variants, too; what is launched can depend on the GPU's ``architecture``.
    """
    distinct: dict[Any, PaperLaunch] = {}
    for number, (spec, case) in enumerate(_fused_paper_cases()):
        for turn, launch in enumerate(_launches(spec, case, architecture, dtype)):
            key = (id(launch.kernel), str(_specialisation(launch)), str(sorted(launch.options.items())))
            distinct.setdefault(key, PaperLaunch(spec, case, launch, (number, turn)))
    return list(distinct.values())


def compile_launch(paper: PaperLaunch, architecture: int) -> CompiledKernel:
    """Compile one launch for one architecture; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, options = paper.launch.kernel, paper.launch.options
    parameters = {parameter.name for parameter in kernel.params}
    compiled = triton.compile(
        ASTSource(kernel, *_specialisation(paper.launch)),
        target=GPUTarget("cuda", architecture, 32),
        options={name: value for name, value in options.items() if name not in parameters},
    )
    registers, spilled = _resources(compiled.asm["cubin"])
    described = any(
        _type(argument).startswith("tensordesc") for argument in paper.launch.arguments if argument is not None
    )
    found = [name for name in _TENSOR_CORE_INSTRUCTIONS if name in compiled.asm["ptx"]]
    return CompiledKernel(
        op=paper.spec.name,
        case=paper.case.name,
        kernel=kernel.__name__,
        architecture=architecture,
        warps=compiled.metadata.num_warps,
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        spilled_bytes=spilled,
        multiplies_matrices="tt.dot" in compiled.asm["ttir"],
        tensor_core_instruction=found[0] if found else "",
        declared=paper.spec.tensor_cores,
        idle_descriptors=described and _TMA_INSTRUCTION not in compiled.asm["ptx"],
    )


def markdown_table(kernels: Sequence[CompiledKernel]) -> str:
    """Return the table of ``kernels`` with the version of Triton that made it."""
    import triton

    lines = [
        "# Compiled kernels",
        "",
        f"`cacophony bench compile` with Triton {triton.__version__}: every kernel as the ops launch it at the paper's",
        "shapes in bfloat16. sm_100 is information, the others must be free of spills.",
        "",
        "| op | case | kernel | sm | warps | registers | shared bytes | spilled bytes | tensor cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for k in kernels:
        figures = (k.architecture, k.warps, k.registers, k.shared_bytes, k.spilled_bytes, k.tensor_core_instruction)
        lines.append(f"| {' | '.join(map(str, (k.op, k.case, f'`{k.kernel}`', *figures)))} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _fused_paper_cases() -> Iterator[tuple[Spec, Case]]:
    with use_backend("fused"):
        fused = [s for s in SPECS if needs_triton(s.name) and choose(s.name, _META).path == "fused"]
    for spec in fused:
        of_op = (spec, *spec.variant_specs().values())
        yield from ((one, case) for one in of_op for case in spec.cases if case.paper)


def _launches(spec: Spec, case: Case, architecture: int, dtype: torch.dtype) -> list[Launch]:
    with use_backend("fused"), record_launches(architecture) as launches:
        outputs = [tensor for _, tensor in named_tensors(spec.op(**case.inputs(_META, dtype)))]
        differentiable = [output for output in outputs if output.requires_grad]
        if differentiable:
            torch.autograd.backward(differentiable, [torch.empty_like(output) for output in differentiable])
    return launches


def _specialisation(launch: Launch) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """Return signature, constants and attributes as Triton's launcher would derive them from the arguments.

    Tensors are aligned to 16 bytes; an integer is known to be a multiple of 16 where it is one, and a constant where it
    is 1, unless the kernel says not to specialise on it; None is a constant.
    """
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    parameters = launch.kernel.params
    given = dict(zip((parameter.name for parameter in parameters), launch.arguments, strict=False)) | launch.options
    for parameter in parameters:
        place, value = (parameter.num,), given.get(parameter.name, parameter.default)
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and type(value) is int and value == 1):
            signature[parameter.name], constants[place] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if isinstance(value, Tensor) or (specialised and type(value) is int and value % 16 == 0):
            attributes[place] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _type(value: Any) -> str:
    from triton.tools.tensor_descriptor import TensorDescriptor

    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype]}{value.block_shape}>"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and local memory of a thread; spilled registers are on its stack, which no kernel needs otherwise."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return counts["REG"], counts["STACK"] + counts["LOCAL"]
