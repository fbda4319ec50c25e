"""Tensors of a pickle that torch.save() wrote, read by a process of its own with little memory and time.

torch.load(weights_only=True) makes tensors and plain containers alone; what a hostile file can still do is to ask for
memory or time without end, or to meet a fault of the reader: the process bears that, and gives back a safetensors file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from export.contract.errors import InputError
from export.files.access import read_bytes
from export.files.tensor_file import read_tensors

MAX_BYTES = 1 << 30  # of the file; an adapter's is a few megabytes
_SECONDS = 120  # most of them for importing torch on a busy machine
_NO_TORCH = 3
_SCRIPT = """
import io, json, sys
try:
    import torch
except ImportError:
    sys.exit(3)
data = sys.stdin.buffer.read()
try:
    import resource
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    most = used + 4 * len(data) + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
except (ImportError, OSError):
    pass
state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
header, parts, at, left = {}, [], 0, len(data)
kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
for name, tensor in state.items():
    assert isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
    assert tensor.device.type == "cpu" and not tensor.is_quantized and tensor.dtype in kinds
    left -= tensor.numel() * tensor.element_size()
    assert left >= 0, "tensors of more bytes than the file has"
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    part = flat.numpy().tobytes()
    header[name] = {
        "dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(part)]
    }
    parts.append(part)
    at += len(part)
text = json.dumps(header).encode()
with open(sys.argv[1], "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text + b"".join(parts))
"""


def read_pickled(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name: float16, float32 or float64, bfloat16 as float32.

    Raises InputError on a file that is missing, too large, a link out of the folder, or not such a file, and where
    torch is not installed.
    """
    data = read_bytes(path, MAX_BYTES, folder)
    with tempfile.TemporaryDirectory(prefix="athena-pickle-") as place:
        made = Path(place) / "tensors"
        command = [sys.executable, "-I", "-c", _SCRIPT, str(made)]
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise InputError(f"{path}: takes longer than {_SECONDS} seconds to read") from None
        except OSError as error:
            raise InputError(f"{path}: could not be read ({error})") from None
        if done.returncode == _NO_TORCH:
            raise InputError(f"{path}: is a pickle, which torch has to read; it is not installed. Or save safetensors")
        if done.returncode or not made.is_file():
            raise InputError(f"{path}: is no dictionary of float tensors that torch.load(weights_only=True) reads")
        return read_tensors(made, 2 * MAX_BYTES, Path(place))
