"""Folders of runs that nobody ever ran, or that somebody has changed since."""

import io
import json
import os
import struct
import zipfile

import numpy as np
from front_door_case import Case, short

HUGE = 10**400
TITLE = "\x1b]0;owned\x07"
"""What makes a terminal call its window so."""


def changed(command, change, name=None):
    """A run whose report.json has been changed: a dictionary laid over it, or a function of it that gives the text."""

    def prepare(folder, material):
        file = material.copy_run(folder) / "report.json"
        values = json.loads(file.read_text())
        text = change(values) if callable(change) else json.dumps({**values, **change})
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return Case(f"{command} {name or short(change)}", [*command.split(), "run"], prepare)


LAYER = {"name": "fc1.weight", "total": 384, "surviving": 10}

REPORTS = [
    *(changed("report", {key: value}) for key, values in {
        "format": (3, HUGE, 0, -1, "1", None, 1.0, [], True),
        "seed": (-1, HUGE, 1.5, None), "classes": (0, -4, HUGE, 10**9), "input_shape": ([], [0], [-16], [HUGE],
        [[16]], "16", [1] * 64, [10**6, 10**6], None), "total_weights": (0, -1, 481, HUGE),
        "surviving_weights": (-1, 481, HUGE),
        "final_accuracy": (float("nan"), float("inf"), -1, 2, HUGE, "high"), "dense_accuracy": (float("nan"), 1e308),
        "target_sparsity": (float("nan"), -0.1, 1.5, 0.7, None), "gates": ("2:4", "rows", "channels", TITLE, 3, None),
        "flops_ratio": (float("nan"), -0.1, float("inf"), 0.5, "half"), "parameters_ratio": (float("nan"), 0.5),
        "compact_parameters": (-1, 0.5, HUGE, 300), "channels": ([LAYER], [{**LAYER, "surviving": 385}], None, "fc1"),
        "final_sparsity": (float("-inf"), 2),
        "seconds": (float("nan"), -1, 1e400), "model": (3, TITLE, "a\x00b", "\ud800"),
        "dataset": ("\n", None), "controller": ([], "\x1b[2J"), "versions": ({"torch": 3}, {"torch": "\x1b"}, []),
        "layers": ([], [LAYER, LAYER], [{**LAYER, "total": 0}], [{**LAYER, "surviving": 385}],
        [{**LAYER, "total": HUGE}], [{**LAYER, "name": "\x1b[31m"}], [{**LAYER, "extra": 1}], "fc1", {"a": 1}, [None]),
        "unknown": (1,),
    }.items() for value in values),
    *(changed("report", lambda _, text=text: text, f"text {short(text)}") for text in (
        b"", b"\x00", b"\xff\xfe", b"[]", b"3", b"null", b"{", b"[" * 200_000, b'{"a":' * 100_000, b"1" * 5000, b"NaN",
        "\ufeff".encode() + b"{}", b'{"a": 1, "a": 2}', b'"' + b"x" * 1000,
    )),
    changed("report", lambda values: json.dumps(values).replace('"seed": 0', '"seed": 0, "seed": 1'), "seed twice"),
    changed("report", lambda values: json.dumps({**values, "format": 9, "versions": {"hyperflux": "9.\x1b[31m"}}), "9"),
    changed("export", {"format": 3}),
    changed("bench latency", {"format": 3}),
    changed("export", {"input_shape": [1 << 17], "classes": 1 << 16}),
    changed("export", {"input_shape": [17]}),
    changed("export", {"classes": 5}),
    changed("bench latency", {"input_shape": [4, 5]}),
]  # fmt: skip


def with_file(name, content, command="report"):
    """A run with one file of another content: bytes, text, or a function that writes it."""

    def prepare(folder, material):
        file = material.copy_run(folder) / name
        if callable(content):
            file.unlink(missing_ok=True)
            content(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    what = content.__name__ if callable(content) else short(content)
    return Case(f"{command} {name} {what}", [*command.split(), "run"], prepare)


def edited(**changes):
    """A metrics.jsonl whose first line has other values."""

    def edit(file):
        rows = [{**ROW, "epoch": 1}, {**ROW, "epoch": 2}]
        rows[0] |= changes
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    edit.__name__ = short(changes)
    return with_file("metrics.jsonl", edit)


ROW = {"epoch": 1, "stage": "pruning", "density": 0.5, "wanted": 0.5, "pressure": 1.0, "lr": 0.1, "presence_lr": 0.1,
       "train_loss": 1.0, "test_loss": 1.0, "accuracy": 0.5, "pruned": 1, "regrown": 1}  # fmt: skip


def many_lists(file):
    file.write_text('{"epoch": [' + "[]," * 10_000_000 + "[]]}\n")


def many_lines(file):
    file.write_text("\n" * 60_000_000)


METRICS = [
    *(with_file("metrics.jsonl", content) for content in (
        b"\xff\n", b"\x00\n", b"{}\n", b"[]\n", b"\n", b"{", b"[" * 100_000 + b"\n", b'{"epoch": 1}',
        b"1" * 5000 + b"\n",
        "\u2028\n", json.dumps(ROW), json.dumps({**ROW, "epoch": 2}) + "\n", json.dumps(ROW)[:-5] + "\n",
    )),
    *(edited(**{key: value}) for key, value in (
        ("epoch", 0), ("epoch", HUGE), ("epoch", 3), ("stage", "rest"), ("stage", "regrowth"), ("stage", []),
        ("density", float("nan")), ("density", 1.5), ("density", HUGE), ("wanted", -0.1), ("pressure", float("inf")),
        ("pressure", -1), ("lr", float("nan")), ("accuracy", "1"), ("accuracy", 2), ("pruned", -1), ("pruned", 0.5),
        ("regrown", HUGE),
    )),
    *(with_file("metrics.jsonl", content) for content in (many_lists, many_lines)),
]  # fmt: skip


def archive(change, name):
    """A run whose telemetry.npz holds other tables: `change(tables)` gives names and bytes, or arrays."""

    def edit(file):
        with np.load(file.parent / "whole.npz", allow_pickle=False) as whole:
            tables = {key: whole[key].copy() for key in whole.files}
        content = change(tables)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
                for key, value in content.items():
                    packed.writestr(f"{key}.npy", value if isinstance(value, bytes) else npy(value))

    def prepare(folder, material):
        run = material.copy_run(folder)
        (run / "telemetry.npz").rename(run / "whole.npz")
        edit(run / "telemetry.npz")
        (run / "whole.npz").unlink()

    return Case(f"telemetry {name}", ["report", "run"], prepare)


def npy(array, **header):
    """The bytes of an .npy file, its header perhaps a lie."""
    content = io.BytesIO()
    plain = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    if array.dtype.hasobject:
        np.save(content, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(content, {**plain, **header})
        content.write(array.tobytes())
    return content.getvalue()


class Writes:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return (open, ("executed", "w"))


def field(table, column, value):
    def change(tables):
        tables[table][column][-1] = value
        return tables

    return archive(change, f"{table}.{column} = {short(value)}")


def claimed(size):
    """An archive whose directory says that a table unpacks to so many bytes."""

    def change(tables):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
            for key, value in tables.items():
                packed.writestr(f"{key}.npy", npy(value))
        raw = bytearray(content.getvalue())
        raw[(place := raw.index(b"PK\x01\x02") + 24) : place + 4] = struct.pack("<I", size)
        return bytes(raw)

    return archive(change, f"claims {size} bytes")


def bomb(tables):
    """A table of 600 MB of zeros in 600 kB."""
    content = io.BytesIO()
    whole = zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with whole as packed, packed.open("network.npy", "w") as member:
        for _ in range(600):
            member.write(bytes(1_000_000))
    return content.getvalue()


def many_members(count=400_000):
    """An archive that is only the list of so many empty members: each takes ten times its bytes in memory."""
    member = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, *[0] * 8, 1, *[0] * 6) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, count * len(member), 0, 0)
    return member * count + end


TELEMETRY = [
    archive(lambda tables: many_members(), "a list of many members"),
    archive(lambda tables: b"", "empty"),
    archive(lambda tables: b"PK\x05\x06" + bytes(18), "an archive of nothing"),
    archive(lambda tables: {**tables, "layers": np.zeros(3, [("step", "f8")])}, "other columns"),
    archive(lambda tables: {key: value for key, value in tables.items() if key != "ages"}, "a table missing"),
    archive(lambda tables: {**tables, "flips": np.array([Writes()], dtype=object)}, "a pickle"),
    archive(lambda tables: {**tables, "network": npy(tables["network"], shape=(10**15,))}, "a petabyte of rows"),
    archive(lambda tables: {**tables, "network": npy(tables["network"], shape=(-1,))}, "rows below 0"),
    archive(lambda tables: {**tables, "network": npy(tables["network"], shape=())}, "no dimension"),
    archive(lambda tables: {**tables, "network": npy(tables["network"], shape=(1, 1))}, "two dimensions"),
    archive(lambda tables: {**tables, "network": b"\x93NUMPY\x09\x00" + bytes(9)}, "another version"),
    archive(lambda tables: {**tables, "network": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}, "a deep header"),
    archive(lambda tables: {**tables, **{f"more{number}": b"" for number in range(200)}}, "many tables"),
    archive(bomb, "a bomb"),
    claimed(0xFFFFFF00),
    claimed(1),
    field("layers", "layer", "fc9.weight"),
    field("layers", "layer", "\x1b[31m"),
    field("layers", "step", -1),
    field("layers", "total", 0),
    field("layers", "surviving", 1 << 40),
    field("network", "step", 0),
    field("network", "stage", "rest"),
    field("flips", "flips", 1 << 50),
    field("flips", "flips", -1),
    field("flips", "weights", -5),
    field("ages", "step", -1),
]


def a_pipe(file):
    os.mkfifo(file)


def a_folder(file):
    file.mkdir()


def a_device(file):
    file.symlink_to("/dev/zero")


def a_loop(file):
    file.symlink_to(file.name)


def a_link_outside(file):
    outside = file.parent.parent / f"outside-{file.name}"
    (file.parent.parent / "other").mkdir()
    outside.write_text("secret")
    file.symlink_to(outside)


def a_file_of_gigabytes(file):
    with file.open("wb") as opened:
        opened.truncate(200 << 30)


def images_run(command, model):
    """A run of small files that says it is one of images, by a network of gigabytes."""

    def prepare(folder, material):
        run = material.copy_run(folder)
        values = json.loads((run / "report.json").read_text())
        (run / "report.json").write_text(json.dumps({**values, "model": model, "input_shape": [3, 224, 224]}))
        (run / "config.toml").write_text(f'dataset = "imagefolder"\nmodel = "{model}"\n')

    return Case(f"{command} a run of {model}", [*command.split(), "run"], prepare)


KINDS = (a_pipe, a_folder, a_device, a_loop, a_link_outside, a_file_of_gigabytes)

PLACES = [
    *(with_file(name, kind) for name in ("report.json", "metrics.jsonl", "config.toml", "telemetry.npz")
      for kind in KINDS),
    *(with_file(name, kind, "export") for name in ("model.safetensors", "dense.safetensors") for kind in KINDS),
    with_file("config.toml", "seed = -1"),
    with_file("config.toml", "x = 1", "export"),
    with_file("config.toml", "model = 'mlp:16-5000-4'", "export"),
    with_file("config.toml", "model = 'resnet20'", "bench latency"),
    *(images_run(command, name) for command in ("export", "bench latency") for name in (
        "timm:swinv2_cr_giant_224", "timm:vit_gigantic_patch14_clip_224", "torchvision:vit_h_14", "resnet50",
    )),
]  # fmt: skip
