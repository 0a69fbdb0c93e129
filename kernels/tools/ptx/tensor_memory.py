"""tcgen05: tensor memory, and products whose accumulator lies there (PTX ISA, 9.7.16).

An address has the lane in its upper 16 bits and the column in its lower. A warp reaches the 32 lanes of its place among four.
"""

import numpy as np

from rlpheads.kernels.tools.ptx.asynchronous_copies import barrier_at
from rlpheads.kernels.tools.ptx.block import TENSOR_COLUMNS, TENSOR_LANES, Action, Block
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array, elements
from rlpheads.kernels.tools.ptx.program import Address, Instruction
from rlpheads.kernels.tools.ptx.tensor_cores import matrix_cells


def dispatch(block: Block, instruction: Instruction, active: Array) -> None:
    """Dispatch on the second part of the name."""
    ACTIONS[instruction.modifiers[0]](block, instruction, active)


def allocate(block: Block, instruction: Instruction, active: Array) -> None:
    """tcgen05.alloc: columns for all lanes, their address into shared memory (9.7.16.7.1)."""
    columns = block.one(instruction.operands[1], "u32", active)
    first = sum(block.tensor_columns.values())
    if first + columns > TENSOR_COLUMNS:
        raise KernelError("allocates more tensor memory than there is")
    block.tensor_columns[first] = columns
    cells = block.addresses(instruction.address(0), "u32", active)[:1, None] + np.arange(4)
    block.shared.write(cells, block.threads[active][:1], np.array([[first]], np.uint32).view(np.uint8))
    block.shared.fence(active)  # the ISA names no proxy for this write, and Triton lets a tensor copy follow unfenced


def release(block: Block, instruction: Instruction, active: Array) -> None:
    """tcgen05.dealloc: no operation may still use the columns (9.7.16.7.1)."""
    first, columns = (block.one(operand, "u32", active) for operand in instruction.operands)
    if block.tensor_columns.pop(first, None) != columns:
        raise KernelError("frees tensor memory that it does not hold")
    if block.tensor_products or any(barrier.actions for barrier in block.barriers.values()):
        raise KernelError("frees tensor memory in use")


def _cells(block: Block, address: Array, lanes: Array, columns: Array) -> Array:
    """Cells at lane and column offsets from each thread's address."""
    column = (address & 0xFFFF)[:, None] + columns
    held = sum(block.tensor_columns.values())
    if (column >= held).any() or ((address >> 16)[:, None] + lanes >= TENSOR_LANES).any():
        raise KernelError("tensor memory that is not allocated")
    return ((address >> 16)[:, None] + lanes) * TENSOR_COLUMNS + column


def _warp_cells(block: Block, instruction: Instruction, place: int, number: int, active: Array) -> Array:
    """Cells of each thread: .32x32b a lane a thread; .16x32bx2 16 lanes, the upper half-warp at an offset (9.7.16.2.3)."""
    address = block.addresses(instruction.address(place), "u32", active)
    lane, warp = block.threads[active] % 32, block.threads[active] // 32
    if (address >> 16 != 32 * (warp % 4)).any() and "32x32b" in instruction.modifiers:
        raise KernelError("a warp reaches for lanes of tensor memory that are not its own")
    if "32x32b" in instruction.modifiers:
        return _cells(block, address, lane[:, None], np.arange(number)[None])
    offset = block.one(instruction.operands[2 if place == 1 else 1], "u32", active)
    if (address >> 21 != warp % 4).any():
        raise KernelError("a warp reaches for lanes of tensor memory that are not its own")
    return _cells(block, address, lane[:, None] % 16, np.arange(number)[None] + offset * (lane[:, None] // 16))


def load_columns(block: Block, instruction: Instruction, active: Array) -> None:
    """tcgen05.ld: registers are there after tcgen05.wait::ld (9.7.16.8.3)."""
    targets = instruction.parts(0)
    cells = _warp_cells(block, instruction, 1, len(targets), active)
    block.tensor.read(cells, block.threads[active])

    def land() -> None:
        values = np.zeros((block.num_threads, len(targets)), np.uint32)
        values[active] = block.tensor.data[cells]
        for target, column in zip(targets, values.T, strict=True):
            block.write(target, column, active)

    if block.launch.late:
        block.put_off(targets, active, block.tensor_loads, land)
    else:
        land()


def store_columns(block: Block, instruction: Instruction, active: Array) -> None:
    """tcgen05.st: in tensor memory after tcgen05.wait::st (9.7.16.8.4)."""
    sources = instruction.parts(len(instruction.operands) - 1)
    cells = _warp_cells(block, instruction, 0, len(sources), active)
    threads = block.threads[active]
    values = [block.column(source, "b32", active) for source in sources]
    values_TN = np.stack(values, 1)[active]
    flight = block.tensor.begin(instruction.text[:60], cells, threads, writes=True, proxy=False)
    if not block.launch.late:
        block.tensor.fill(cells, values_TN)
    block.tensor_stores.append(lambda: block.tensor.settle(flight, cells, threads, values_TN))


def _wait(actions: list[Action]) -> None:
    for action in actions:
        action()
    actions.clear()


def _wait_for_loads(block: Block, instruction: Instruction, active: Array) -> None:
    _wait(block.tensor_loads)


def _wait_for_stores(block: Block, instruction: Instruction, active: Array) -> None:
    _wait(block.tensor_stores)


def begin_product(block: Block, instruction: Instruction, active: Array) -> None:
    """tcgen05.mma by one thread: D = A·B (+ D), A in tensor or shared memory, B in shared memory (9.7.16.10.9)."""
    thread = np.array([block.single(active)])
    product = _Product(block, instruction, active)
    text = instruction.text[:90]
    flights = [block.shared.begin(text, product.b[None].reshape(1, -1), thread, writes=False, proxy=True)]
    where = block.tensor if product.a_in_tensor else block.shared
    flights.append(
        where.begin(text, product.a.reshape(1, -1), thread, writes=False, proxy=not product.a_in_tensor, pipe="mma")
    )
    total = product.d.reshape(1, -1)
    if product.adds and not block.tensor.is_set(total):
        raise KernelError("adds to tensor memory that was never written")
    flights.append(block.tensor.begin(text, total, thread, writes=True, proxy=False, pipe="mma"))
    block.tensor_products.append((flights, product.compute))
    if not block.launch.late:
        product.compute()


class _Product:
    """Operands of one tcgen05.mma, by its instruction descriptor (9.7.16.4.2)."""

    def __init__(self, block: Block, instruction: Instruction, active: Array) -> None:
        self._block = block
        d, a, b, descriptor, adds = instruction.operands
        bits = block.one(descriptor, "u32", active)
        rows, columns = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
        self.kind = {("kind::f16", 0): "f16", ("kind::f16", 1): "bf16", ("kind::tf32", 2): "tf32"}[
            instruction.modifiers[2], bits >> 7 & 7
        ]
        if bits >> 4 & 3 != 1 or bits >> 10 & 7 != bits >> 7 & 7 or bits >> 13 & 3 or bits & 0xC:
            raise NotImplementedError(f"instruction descriptor {bits:#x}")
        self.adds = bool(block.column(adds, "pred", active)[active][0])
        lanes = np.arange(rows) if rows == TENSOR_LANES else np.arange(rows) // 16 * 32 + np.arange(rows) % 16
        self.d = _cells(block, np.array([block.one(d, "u32", active)]), lanes[:, None], np.arange(columns)[None])
        self.a_in_tensor = isinstance(a, Address)
        if self.a_in_tensor:
            self.a = _cells(block, np.array([block.one(a, "u32", active)]), lanes[:, None], np.arange(8)[None])
        else:
            self.a = _shared_matrix(block.one(a, "u64", active), rows, bool(bits >> 15 & 1))
        self.b = _shared_matrix(block.one(b, "u64", active), columns, bool(bits >> 16 & 1))

    def compute(self) -> None:
        """Multiply; rounded as in `tensor_cores`."""
        block = self._block
        a = block.tensor.data[self.a].view(np.uint8) if self.a_in_tensor else block.shared.data[self.a]
        product = elements(a, self.kind) @ elements(block.shared.data[self.b], self.kind).T
        if self.adds:
            product += block.tensor.data[self.d].view(np.float32)
        block.tensor.fill(self.d, product.astype(np.float32).view(np.uint32))


def _shared_matrix(descriptor: int, rows: int, across: bool) -> Array:
    swizzle = {0: 0, 2: 3, 4: 2, 6: 1}[descriptor >> 61]
    return matrix_cells(descriptor, swizzle, rows, across)


def commit(block: Block, instruction: Instruction, active: Array) -> None:
    """tcgen05.commit: an mbarrier is arrived at when all products so far are complete (9.7.16.11.1)."""
    block.single(active)
    barrier = barrier_at(block, block.one(instruction.address(0), "u32", active))
    products, block.tensor_products = block.tensor_products, []

    def land() -> None:
        for flights, compute in products:
            if block.launch.late:
                compute()
            barrier.flights += flights
        barrier.arrive(1, 0)

    if block.launch.late:
        barrier.actions.append(land)
    else:
        land()


def _nothing(block: Block, instruction: Instruction, active: Array) -> None:
    """relinquish_alloc_permit: no other block is there to allocate."""


ACTIONS = {
    "alloc": allocate, "dealloc": release, "relinquish_alloc_permit": _nothing, "ld": load_columns, "st": store_columns,
    "mma": begin_product, "wait::ld": _wait_for_loads, "wait::st": _wait_for_stores, "commit": commit,
}  # fmt: skip
INSTRUCTIONS = {"tcgen05": dispatch}
