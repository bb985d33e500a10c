"""Weights files: safetensors with headers that lie, files of torch.save that would execute something."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import torch
from bad_runs import KINDS, Writes, a_link_outside, many_members, with_file
from front_door_case import Case, short

PRUNE = ["prune", "--dataset", "synthetic", "--model", "mlp:16-24-4", "--sparsity", "0.8"]


def safetensors(header, data=b"", length=None):
    """The bytes of a safetensors file of this header, a value or bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(**changes):
    return {"fc1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


LIES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": safetensors(b""),
    "a header of 2^63 bytes": safetensors(b"{}", length=1 << 63),
    "a header of 90 MB": safetensors(b"{}", length=90_000_000),
    "a header of one byte more": safetensors(b"{}", length=3),
    "not JSON": safetensors(b"\x80\x04"),
    "deep JSON": safetensors(b"[" * 100_000),
    "a list": safetensors([]),
    "a petabyte": safetensors(tensor(shape=[1 << 48], data_offsets=[0, 1 << 50]), bytes(16)),
    "sizes that overflow": safetensors(tensor(shape=[1 << 62, 4, 4]), bytes(16)),
    "a negative size": safetensors(tensor(shape=[-4]), bytes(16)),
    "half a number": safetensors(tensor(shape=[2.5]), bytes(16)),
    "offsets backwards": safetensors(tensor(data_offsets=[16, 0]), bytes(16)),
    "offsets beyond the end": safetensors(tensor(data_offsets=[0, 32]), bytes(16)),
    "an unknown dtype": safetensors(tensor(dtype="F33"), bytes(16)),
    "no dtype": safetensors({"fc1.weight": {"shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "a name twice": safetensors(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 2 + b'"b":3}'),
    "a name to obey": safetensors({"\x1b[31m": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "bytes left over": safetensors(tensor(), bytes(17)),
    "no tensor": safetensors({}),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}}),
    "integers": safetensors(tensor(dtype="I32"), bytes(16)),
    "complex numbers": safetensors(tensor(dtype="C64", shape=[2]), bytes(16)),
    "numbers of four bits": safetensors(tensor(dtype="F4", shape=[32]), bytes(16)),
    "numbers of six bits": safetensors(tensor(dtype="F6_E2M3", shape=[16]), bytes(12)),
    "float8 of another model": safetensors(tensor(dtype="F8_E4M3", shape=[16]), bytes(16)),
    "another model": safetensors(tensor(), bytes(16)),
    "a pickle": pickle.dumps(Writes()),
}


def checkpoint(name, content, file="bad.safetensors", *more):
    """The case of a checkpoint; `content` is bytes, or a function of the file and the material."""

    def prepare(folder, material):
        if callable(content):
            content(folder / file, material)
        else:
            (folder / file).write_bytes(content)

    return Case(f"{file} {name}", [*PRUNE, "--checkpoint", file, *more], prepare)


SAFETENSORS = [
    *(checkpoint(name, content) for name, content in LIES.items()),
    *(checkpoint(name, content, "bad.safetensors", "--backend", "numpy") for name, content in LIES.items()),
    *(with_file("model.safetensors", LIES[name], "export") for name in ("empty", "a petabyte", "another model")),
    *(checkpoint(kind.__name__, lambda file, material, kind=kind: kind(file)) for kind in KINDS
      if kind is not a_link_outside),
]  # fmt: skip


class Runs:
    """Unpickling this would start a schedule."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def saved(content, **how):
    whole = io.BytesIO()
    torch.save(content, whole, **how)
    return whole.getvalue()


def repacked(change):
    """A file of torch.save, a zip archive, its members changed: `change(name, bytes)` gives bytes and how to pack."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"fc1.weight": torch.ones(4)}))) as whole,
        zipfile.ZipFile(packed, "w") as new,
    ):
        for name in whole.namelist():
            content, kind = change(name, whole.read(name))
            new.writestr(name, content, kind)
    return packed.getvalue()


def with_pickle(content):
    return repacked(lambda name, kept: (content if name.endswith("data.pkl") else kept, zipfile.ZIP_STORED))


def scripted(file, material):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(file))


def called(function, argument):
    """The pickle of a call: the function by its name, and one number."""
    module, name = function
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + pickle.dumps((argument,), 2)[2:-1] + b"R."


def of_old(pickled):
    """A file of torch before 1.6 whose content is this pickle."""
    about = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    return b"".join(pickle.dumps(one, 2) for one in about) + pickled + pickle.dumps([], 2)


def doubled(levels=60):
    """The pickle of a dictionary whose key is a tuple of two tuples of two, and so on: hashing it never ends."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(levels))
    return b"\x80\x02)q\x00" + pairs + b"}h%cK\x01s." % levels


def within_itself():
    inner = {"fc1.weight": torch.ones(4)}
    inner["again"] = {"deeper": inner}
    return inner


MANY = {
    "tuples of tuples": doubled(),
    "4 million sets": b"\x80\x04" + b"\x8f" * 4_000_000 + b".",
    "30 MB of dictionaries": b"\x80\x02" + b"}" * 30_000_000 + b".",
    "a bytearray of 1 GB": called(("builtins", "bytearray"), 10**9),
    "a bytearray of 1 GB, protocol 4": b"\x80\x04" + called(("builtins", "bytearray"), 10**9)[2:],
    "nothing fetched": b"\x80\x02h\x07.",
}
"""Pickles that ask for far more than they are."""

EXECUTABLE = {"writes": Writes(), "runs": Runs(), "in a state_dict": {"state_dict": {"fc1.weight": Writes()}},
              "beside tensors": {"model": {"fc1.weight": torch.ones(4)}, "hook": Runs()}}  # fmt: skip

CHECKPOINTS = [
    *(checkpoint(f"saved, {name}", saved(content), "bad.pth") for name, content in EXECUTABLE.items()),
    *(checkpoint(f"saved as of old, {name}", saved(content, _use_new_zipfile_serialization=False), "bad.pth")
      for name, content in EXECUTABLE.items()),
    *(checkpoint(f"pickled, protocol {protocol}", pickle.dumps(Runs(), protocol), "bad.pth") for protocol in range(6)),
    *(checkpoint(f"pickle in the archive, protocol {protocol}", with_pickle(pickle.dumps(Writes(), protocol)), "bad.pt")
      for protocol in range(6)),
    checkpoint("a NumPy array of objects", saved({"a": np.array([Writes()], dtype=object)}), "bad.pth"),
    checkpoint("a whole module", saved(torch.nn.Linear(2, 2)), "bad.pth"),
    checkpoint("TorchScript", scripted, "bad.pt"),
    checkpoint("packed", repacked(lambda name, kept: (kept + bytes(90_000_000), zipfile.ZIP_DEFLATED)), "bad.pt"),
    checkpoint("a bytearray of 10 GB", with_pickle(called(("builtins", "bytearray"), 10**10)), "bad.pt"),
    *(checkpoint(name, with_pickle(content), "bad.pt") for name, content in MANY.items()),
    *(checkpoint(f"of old, {name}", of_old(content), "bad.pt") for name, content in MANY.items()),
    checkpoint("within itself", saved(within_itself()), "bad.pt"),
    checkpoint("a list of many members", many_members(), "bad.pt"),
    checkpoint("a petabyte", with_pickle(
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x04tQK\x00\x8a\x07\x00\x00\x00\x00\x00\x00\x04\x85K\x01\x85\x89}tR."
    ), "bad.pt"),
    checkpoint("garbage", bytes(range(256)) * 4, "bad.pth"),
    checkpoint("deep", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "bad.pth"),
    checkpoint("empty", b"", "bad.pth"),
    checkpoint("an empty archive", b"PK\x05\x06" + bytes(18), "bad.pth"),
    checkpoint("no tensors", saved({"epoch": 3}), "bad.pth"),
    checkpoint("two models", saved({"model": {"a": torch.ones(1)}, "ema": {"a": torch.zeros(1)}}), "bad.pth"),
    checkpoint("another model, nested", saved({"state_dict": {"model.fc1.weight": torch.ones(4)}}), "bad.ckpt"),
    checkpoint("a name to obey", saved({"\x1b[31m": torch.ones(1)}), "bad.pth"),
    checkpoint("nothing finite", saved({"fc1.weight": torch.full((4,), float("nan"))}), "bad.pth"),
    *(checkpoint(kind.__name__, lambda file, material, kind=kind: kind(file), "bad.pth") for kind in KINDS),
    checkpoint(short("code for NumPy"), pickle.dumps(Runs()), "bad.pkl", "--backend", "numpy"),
]  # fmt: skip
