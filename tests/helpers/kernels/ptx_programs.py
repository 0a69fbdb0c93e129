"""Small kernels in PTX, written by hand, and what they do to tensors."""

from typing import Any

import numpy as np
import torch

from rlpheads.kernels.tools.ptx.block import KernelLaunch
from rlpheads.kernels.tools.ptx.global_memory import GlobalMemory
from rlpheads.kernels.tools.ptx.launch import run_blocks
from rlpheads.kernels.tools.ptx.program import parse

FRAME = """.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel({parameters})
.reqntid {threads}
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<400>;
	.reg .b64 	%rd<90>;
	mov.u32 	%r0, %tid.x;
{body}
	ret;
}}
"""
PLACE = "\tmad.wide.s32 \t%rd{number}, %r0, {size}, %rd{number};"


def run(
    body: str,
    *tensors: torch.Tensor,
    threads: int = 32,
    shared_bytes: int = 0,
    late: bool = True,
    maps: dict[int, Any] | None = None,
    blocks: int = 1,
) -> KernelLaunch:
    """Run statements with %r0 the thread, and the address of each tensor in %rd0, %rd1, …; map n is parameter m{n}."""
    names = [f"t{number}" for number in range(len(tensors))]
    parameters = [f".param .u64 {name}" for name in names] + [f".param .u64 m{handle}" for handle in maps or {}]
    loads = [f"\tld.param.b64 \t%rd{number}, [{name}];" for number, name in enumerate(names)]
    text = FRAME.format(parameters=", ".join(parameters), threads=threads, body="\n".join([*loads, body]))
    values = {name: tensor.data_ptr() for name, tensor in zip(names, tensors, strict=True)}
    values |= {f"m{handle}": handle for handle in maps or {}}
    memory = GlobalMemory(list(tensors))
    launch = KernelLaunch(parse(text), values, maps or {}, memory, shared_bytes, (blocks, 1, 1), late)
    run_blocks(launch)
    return launch


REGISTERS = {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}


def elementwise(statement: str, *inputs: np.ndarray, result: type, shared_bytes: int = 0) -> np.ndarray:
    """Run `statement` once a thread with {0} its target, {1}, {2}, … an element of each input; return all targets."""
    arrays = [np.ascontiguousarray(array) for array in inputs]
    num = len(arrays[0])
    output = np.zeros(num, result)
    tensors = [torch.from_numpy(array.view(f"i{array.itemsize}")) for array in (*arrays, output)]
    body, names = [], [_register(9, output.itemsize)]
    for number, array in enumerate(arrays):
        names.append(_register(number + 1, array.itemsize))
        body.append(PLACE.format(number=number, size=array.itemsize))
        body.append(f"\tld.global.b{8 * array.itemsize} \t{names[-1]}, [%rd{number}];")
    body.append(f"\t{statement.format(*names)};")
    body.append(PLACE.format(number=len(arrays), size=output.itemsize))
    body.append(f"\tst.global.b{8 * output.itemsize} \t[%rd{len(arrays)}], {names[0]};")
    run("\n".join(body), *tensors, threads=num, shared_bytes=shared_bytes)
    return tensors[-1].numpy().view(result)


def _register(number: int, itemsize: int) -> str:
    if itemsize == 8:
        return f"%rd{number + 40}"
    return f"{REGISTERS[itemsize]}{number if itemsize == 4 else number - 1}"
