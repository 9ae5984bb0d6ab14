"""Parameter trees in flax's checkpoint files: msgpack, read without believing a byte and never with pickle.

A leaf is a msgpack extension of type 1 (array) or 3 (scalar) whose bytes are msgpack again: ``[shape, dtype, values]``.
A leaf above 2^30 bytes is cut into flat ones: ``{'__msgpack_chunked_array__': True, 'shape': {'0': size, ...},
'chunks': {'0': leaf, ...}}``. (``flax/serialization.py``, flax 0.6.7.)
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ..errors import InputError
from .msgpack_index import Buffer, Node, Span, index

Progress = Callable[[int, int], None]

_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 2**30
_MOST_DIMENSIONS = 8
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}

_FORMS = "{'0': {'params': ...}}, [{'params': ...}] or {'params': ...}"


def read_tree(path: str | os.PathLike[str], progress: Progress | None = None) -> dict[str, np.ndarray]:
    """Return the parameters of a flax checkpoint: path joined by ``/``, below ``params``, to float32 array.

    ``path`` is a legacy file (``{'0': {'params': ...}, ...}``, or ``{'params': ...}``), orbax's aggregate file
    (``[{'params': ...}, ...]``), or the directory orbax keeps it in. All else in it, such as the optimiser's state, is
    stepped over. float32 leaves are read-only views of the mapped file; float16, bfloat16 and float64 ones are copies.
    ``progress`` is called with the number of leaves done and of all.

    Raises InputError that names the file, and the leaf or byte, where it is something else, is truncated or damaged, or
    a leaf is not an array of floating-point numbers that fill its shape.
    """
    file = _file(Path(path))
    try:
        data = _mapped(file)
        _check_format(data)
        leaves = _parameters(index(data))
        tree: dict[str, np.ndarray] = {}
        for done, (name, leaf) in enumerate(leaves.items(), 1):
            tree[name] = _array(data, name, leaf)
            if progress is not None:
                progress(done, len(leaves))
        return tree
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def write_tree(path: str | os.PathLike[str], tree: Mapping[str, np.ndarray], progress: Progress | None = None) -> None:
    """Write a flat float32 tree as flax's legacy checkpoint ``{'0': {'step', 'params', 'opt_state'}, '1': {'epoch'}}``.

    The bytes are those of ``flax.training.checkpoints.save_checkpoint`` for the same tree in the same order, step and
    epoch 0, no optimiser state. The file appears whole or not at all. ``progress`` is called with the bytes of values
    written and of all. Raises ValueError for a leaf of another dtype, or that is also a branch; OSError where the disk
    refuses.
    """
    state = {"step": 0, "params": _nested(tree), "opt_state": {}}
    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    done, total = 0, sum(array.nbytes for array in tree.values())
    try:
        with temporary.open("wb") as file:
            for piece in _pieces({"0": state, "1": {"epoch": 0}}):
                file.write(piece)
                if progress is not None and isinstance(piece, memoryview):
                    done += piece.nbytes
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def _file(path: Path) -> Path:
    file = path / "checkpoint" if path.is_dir() else path
    if not file.is_file():
        expected = "expected a flax checkpoint file, or the directory orbax wrote with a file called checkpoint in it"
        raise InputError(f"{file}: no such file; {expected}")
    return file


def _mapped(file: Path) -> mmap.mmap:
    if not file.stat().st_size:
        raise InputError("is empty; expected a flax checkpoint")
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _check_format(data: Buffer) -> None:
    """Raise InputError where the first bytes are another format's, or no msgpack map or array starts there."""
    begin, end = data[:32], data[len(data) - 1 :]
    binary_pickle = begin[0] == 0x80 and len(data) > 1 and begin[1] <= 5
    text_pickle = begin[0] in b"(]}c" and end == b"."
    if binary_pickle or text_pickle:
        raise InputError(
            "looks like a pickle, which can run any program when loaded and which this project never loads; "
            "expected a flax checkpoint (msgpack)"
        )
    if begin.startswith(b"PK\x03\x04"):
        raise InputError("is a zip archive, as torch.save and numpy.savez write; expected a flax checkpoint (msgpack)")
    if begin.startswith(b"version https://git-lfs"):
        raise InputError("is a Git LFS pointer, not the checkpoint itself; fetch it with `git lfs pull`")
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= len(data):
        raise InputError("is a safetensors file; expected a flax checkpoint (msgpack)")
    if not (0x80 <= begin[0] <= 0x9F or 0xDC <= begin[0] <= 0xDF):
        raise InputError(f"is not a flax checkpoint: it begins with {begin[:8]!r}, no map or array of msgpack")


def _parameters(top: Node) -> dict[str, Node]:
    """Return the leaves below ``params``, whichever of the three forms the file has."""
    state: Node = top
    if isinstance(top, list):
        state = top[0] if top else None
    elif isinstance(top, dict) and "params" not in top:
        state = top.get("0")
    params = state.get("params") if isinstance(state, dict) else None
    leaves = dict(_leaves(params, ())) if isinstance(params, dict) else {}
    if not leaves:
        found = ", ".join(list(top)[:6]) if isinstance(top, dict) else "a list"
        raise InputError(f"holds no params; expected {_FORMS} in msgpack, found {found or 'nothing'}")
    return leaves


def _leaves(node: dict[str, Node], above: tuple[str, ...]) -> Iterator[tuple[str, Node]]:
    for name, child in node.items():
        path = (*above, name)
        if not name or "/" in name:
            raise InputError(f"leaf {'/'.join(path)}: a name is empty or has a slash; expected a flax module's name")
        if isinstance(child, dict) and _CHUNKED not in child:
            yield from _leaves(child, path)
        else:
            yield "/".join(path), child


def _array(data: Buffer, name: str, leaf: Node) -> np.ndarray:
    if isinstance(leaf, dict):
        return _chunked_array(data, name, leaf)
    shape, dtype, span = _stored(data, name, leaf)
    return _values(data, dtype, span).reshape(shape)


def _chunked_array(data: Buffer, name: str, leaf: dict[str, Node]) -> np.ndarray:
    sizes, chunks = leaf.get("shape"), leaf.get("chunks")
    if not isinstance(sizes, dict) or not isinstance(chunks, dict) or len(leaf) != 3:
        raise InputError(f"leaf {name} is cut into chunks, but shape or chunks is not there; the file is damaged")
    shape = _shape(name, [sizes.get(str(number)) for number in range(len(sizes))])
    parts = [_stored(data, name, chunks.get(str(number))) for number in range(len(chunks))]
    held = sum(math.prod(part) for part, _, _ in parts)
    if held != math.prod(shape):
        raise InputError(f"leaf {name} has shape {shape}, but its chunks hold {held} values; the file is damaged")
    array = np.empty(held, np.float32)
    begin = 0
    for part, dtype, span in parts:
        array[begin : begin + math.prod(part)] = _values(data, dtype, span)
        begin += math.prod(part)
    return array.reshape(shape)


def _stored(data: Buffer, name: str, leaf: Node) -> tuple[tuple[int, ...], str, Span]:
    """Return shape, dtype and bytes of an array, checked against each other."""
    if isinstance(leaf, str):
        raise InputError(
            f"leaf {name} is the text {leaf[:40]!r}, not an array: its values are in other files; "
            "restore the checkpoint with flax and save it as one file"
        )
    if not isinstance(leaf, Span) or leaf.code not in (_ARRAY, _SCALAR):
        raise InputError(f"leaf {name} is not an array; expected flax's msgpack form of one")
    match index(data, leaf.start, leaf.stop, name):
        case [list() as sizes, str() as dtype, Span(code=None) as span]:
            pass
        case _:
            raise InputError(f"leaf {name} is not flax's [shape, dtype, bytes]; the file is damaged")
    shape = _shape(name, sizes)
    if dtype not in _ITEM_BYTES:
        raise InputError(f"leaf {name} has dtype {dtype[:40]!r}, expected one of {', '.join(_ITEM_BYTES)}")
    needed, held = math.prod(shape) * _ITEM_BYTES[dtype], span.stop - span.start
    if needed != held:
        raise InputError(f"leaf {name} of shape {shape} and dtype {dtype} needs {needed} bytes, but has {held}")
    return shape, dtype, span


def _shape(name: str, sizes: list[Node]) -> tuple[int, ...]:
    shape = tuple(size for size in sizes if type(size) is int and size >= 1)
    if len(shape) != len(sizes) or len(shape) > _MOST_DIMENSIONS:
        raise InputError(f"leaf {name}: its shape is not 0 to {_MOST_DIMENSIONS} sizes above 0; the file is damaged")
    return shape


def _values(data: Buffer, dtype: str, span: Span) -> np.ndarray:
    """Return the values as float32, flat."""
    stored = "<u2" if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    values = np.frombuffer(data, stored, (span.stop - span.start) // _ITEM_BYTES[dtype], span.start)
    if dtype == "bfloat16":
        bits = values.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    # A number that float32 cannot hold becomes infinity, which no network takes: the reader of the tree says so.
    with np.errstate(all="ignore"):
        return values.astype("<f4", copy=False)


def _nested(tree: Mapping[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, array in tree.items():
        if array.dtype != np.float32:
            raise ValueError(f"leaf {path} has dtype {array.dtype}, expected float32")
        *modules, name = path.split("/")
        branch = nested
        for module in modules:
            branch = branch.setdefault(module, {})
            if not isinstance(branch, dict):
                raise ValueError(f"leaf {path} lies below another leaf")
        if name in branch:
            raise ValueError(f"leaf {path} is also a branch")
        branch[name] = array
    return nested


def _pieces(node: Any) -> Iterator[bytes | memoryview]:
    """Yield the msgpack bytes of ``node``; the values of arrays as views, so that none is held twice."""
    packer = msgpack.Packer()
    if isinstance(node, dict):
        yield packer.pack_map_header(len(node))
        for name, child in node.items():
            yield packer.pack(name)
            yield from _pieces(child)
    elif not isinstance(node, np.ndarray):
        yield packer.pack(node)
    elif node.nbytes > _CHUNK_BYTES:
        yield from _pieces(_cut(node))
    else:
        values = np.ascontiguousarray(node, "<f4").reshape(-1).view(np.uint8).data
        head = packer.pack_array_header(3) + packer.pack(node.shape) + packer.pack(node.dtype.name)
        head += _header(values.nbytes, (0xC4, 0xC5, 0xC6))
        yield _extension_header(len(head) + values.nbytes) + head
        yield values


def _cut(array: np.ndarray) -> dict[str, Any]:
    flat, step = array.reshape(-1), _CHUNK_BYTES // array.itemsize
    chunks = [flat[begin : begin + step] for begin in range(0, flat.size, step)]
    return {_CHUNKED: True, "shape": _numbered(array.shape), "chunks": _numbered(chunks)}


def _numbered(items: Any) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items)}


def _extension_header(length: int) -> bytes:
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(length)
    head = bytes([fixed]) if fixed is not None else _header(length, (0xC7, 0xC8, 0xC9))
    return head + bytes([_ARRAY])


def _header(length: int, codes: tuple[int, int, int]) -> bytes:
    """Return msgpack's shortest header for ``length`` bytes; ``codes`` are those for 1, 2 and 4 bytes of length."""
    if length < 2**8:
        return struct.pack(">BB", codes[0], length)
    if length < 2**16:
        return struct.pack(">BH", codes[1], length)
    return struct.pack(">BI", codes[2], length)
