"""Input that nobody wrote: tables of every size, every number format, every kind of file, names that are code.

A command may accept it or refuse it. Numbers are drawn from `SEED`, or anew under the profile `nightly`.
"""

import gzip
import json
import math
import os
import shutil
import zipfile
from pathlib import Path
from random import Random

import numpy as np
from bad_data import IMAGE_FOLDER, MNIST
from bad_runs import KINDS, ROW, a_folder, a_link_outside, npy
from bad_weights import PRUNE, safetensors
from front_door_case import Case, short
from idx_files import idx_bytes, write_mnist
from image_files import write_folder

from hyperflux.telemetry.columns import SCHEMA
from hyperflux.telemetry.file import MAX_INTERVALS, MAX_ROWS, file_content, read_tables

SEED = Random().randrange(1 << 30) if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 0
BLOCK = 10_000
"""Rows of a large table that are made at once."""
EXTREMES = (5e-324, 1e-300, 1e-9, 0.5, 1.0, 3.0, 1e9, 1e300, 1e308)
NAMES = (
    "$x^{$", "$$", "\\frac{1}{0}", "_", "__", "%s%n", "{0.__class__}", "{{ 7 * 7 }}", "[bold]x[bold", ":smile:",
    "<b>&amp;",
    '"\'`', "| a | b |", "#!$(touch executed);", "-", "..x", " ", "größe 雪 🙂", "\u202egnp.exe", "a" * 200, "con.png",
)  # fmt: skip
"""Of folders, files, columns, models and layers."""


def csv_table(name, text, *options):
    return Case(
        f"table {name}", ["law", "--from", "own.csv", *options], lambda folder, _: _write(folder, "own.csv", text)
    )


def _write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")


def drawn_points(random, rows):
    """Rows of a CSV file: extremes, and what is near a law."""
    spread = [(random.choice(EXTREMES), random.choice(EXTREMES)) for _ in range(rows)]
    near = [(x := random.uniform(0.1, 10), 0.1 * x**-0.5 * random.uniform(0.8, 1.2)) for _ in range(rows)]
    return "pressure,density\n" + "".join(f"{x!r},{y!r}\n" for x, y in random.choice((spread, near, near)))


def tables():
    random = Random(SEED)
    yield from (
        csv_table(f"of {rows} rows", drawn_points(random, rows), "--out", "out") for rows in (0, 1, 2, 3, 4, 7, 500)
    )
    yield from (
        csv_table(f"with pressure {value}", f"pressure,density\n{value},0.5\n1,0.3\n2,0.2\n4,0.11\n", "--out", "out")
        for value in EXTREMES
    )
    yield from (csv_table(f"drawn {number}", drawn_points(random, random.randint(3, 12))) for number in range(20))
    law = "".join(f"{2.0**power},{0.1 * 0.7**power}\n" for power in range(-5, 5))
    yield from (
        csv_table(name, text)
        for name, text in {
            "of 70,000 points": "pressure,density\n" + "1,0.5\n2,0.4\n4,0.2\n8,.11\n" * 35_000,
            "of a million spaces": "pressure,density\n" + " " * 1_000_000,
            "of a line of spaces": "pressure,density\n1," + " " * 100_000 + "0.5\n",
            "of spaces and commas": " ," * 500_000,
            "of 20,000 columns and rows": "pressure,density" + "," * 20_000 + "\n" + "1,2\n" * 20_000,
            "of quotes": 'pressure,density\n"' + '""' * 400_000,
            "of empty lines": "pressure,density\n" + "\n" * 1_000_000,
            "of a long number": "pressure,density\n" + "9" * 100_000 + ",0.5\n" + law,
        }.items()
    )


def toml(name, text):
    return Case(f"recipe {name}", ["prune", "--recipe", "own.toml"], lambda folder, _: _write(folder, "own.toml", text))


def recipes():
    keys, quoted = "a." * 49_999, '"a".' * 25_000
    for name, text in {
        "of a long dotted key": f"{keys}a = 1",
        "of a long quoted key": f"{quoted}a = 1",
        "of a long table name": f"[{keys}a]",
        "of a long key in a table": f"x = {{{keys}a = 1}}",
        "of a key with spaces": "a . " * 20_000 + "a = 1",
        "of deep lists": "a = " + "[" * 100_000,
        "of deep tables": "a = " + "{a = " * 50_000,
        "of many tables": "".join(f"[a{number}]\n" for number in range(20_000)),
        "of escaped quotes": 'a = "' + '\\"' * 100_000 + '"',
        "of open quotes": '\\"' * 100_000,
        "of many quotes": '"' * 250_000,
        "of one word": "a" * 250_000,
        "of a pattern of brackets": f"exclude = ['{'[' * 250_000}']",
        "of many patterns": "exclude = [" + '"*", ' * 50_000 + "]",
    }.items():
        yield toml(name, text)


def report(name, change):
    """`hyperflux report` of a run that `change(run)` has changed, into a new folder."""
    return Case(f"report {name}", ["report", "run", "--out", "page"], lambda folder, m: change(m.copy_run(folder)))


def epochs(rows):
    def change(run):
        (run / "telemetry.npz").unlink()
        text = "".join(json.dumps({**ROW, "epoch": number + 1}) + "\n" for number in range(rows))
        (run / "metrics.jsonl").write_text(text)

    return report(f"of {rows} epochs", change)


def layers(count):
    def change(run):
        (run / "telemetry.npz").unlink()
        values = json.loads((run / "report.json").read_text())
        found = [{"name": f"layer{number}.weight", "total": 9, "surviving": number % 10} for number in range(count)]
        totals = {"total_weights": 9 * count, "surviving_weights": sum(layer["surviving"] for layer in found)}
        (run / "report.json").write_text(json.dumps({**values, **totals, "layers": found}))

    return report(f"of {count} layers", change)


def telemetry(name, change):
    """A run whose tables of telemetry are what `change(tables)` makes of them."""

    def spoil(run):
        file = run / "telemetry.npz"
        file.write_bytes(file_content({**(whole := read_tables(file)), **change(whole)}))

    return report(f"of telemetry {name}", spoil)


def enlarged(table, rows):
    """A run with a table of so many rows: its first one over and over, places or steps rising; stored, not packed."""

    def spoil(run):
        file = run / "telemetry.npz"
        whole = read_tables(file)
        column = "index" if "index" in SCHEMA[table].names else "step"
        with zipfile.ZipFile(file, "w") as packed:
            for name, part in whole.items():
                with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                    count = rows if name == table else len(part)
                    np.lib.format.write_array_header_1_0(member, {**_header(part), "shape": (count,)})
                    for start in range(0, count, BLOCK) if name == table else ():
                        block = np.repeat(part[:1], min(BLOCK, count - start))
                        block[column] = np.arange(start, start + len(block))
                        member.write(block.tobytes())
                    member.write(part.tobytes() if name != table else b"")

    return report(f"of telemetry with {rows} rows of {table}", spoil)


def claimed(table, rows):
    """A run with a table that says to have so many rows."""

    def spoil(run):
        whole = read_tables(run / "telemetry.npz")
        with zipfile.ZipFile(run / "telemetry.npz", "w") as packed:
            for name, part in whole.items():
                packed.writestr(f"{name}.npy", npy(part, **({"shape": (rows,)} if name == table else {})))

    return report(f"of telemetry that claims {rows} rows of {table}", spoil)


def _header(array):
    return {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}


def extreme(random, tables_):
    """Some tables shorter, and a few columns of extreme numbers."""
    made = {}
    for name, table in tables_.items():
        made[name] = table[: random.choice((1, 2, 3, len(table)))].copy()
        for column in random.sample(table.dtype.names, 2):
            kind, value = made[name].dtype[column].kind, random.choice((0, 1, *EXTREMES, math.nan, math.inf))
            if kind == "f":
                with np.errstate(over="ignore"):
                    made[name][column] = value
            elif kind == "i" and column not in ("step", "total", "surviving"):
                made[name][column] = min(value, 1e18) if math.isfinite(value) else 0
    return made


def runs():
    yield from map(epochs, (0, 1, 2, 1000, 100_000, 100_001, 300_000))
    yield from map(layers, (1, 9, 10_000, 10_001))
    yield telemetry("of one row each", lambda whole: {name: table[:1] for name, table in whole.items()})
    yield telemetry("of last rows", lambda whole: {name: table[-1:] for name, table in whole.items()})
    for name in SCHEMA:
        for rows in (0, 1):
            yield telemetry(f"with {rows} rows of {name}", lambda whole, n=name, k=rows: {n: whole[n][:k]})
        yield claimed(name, MAX_ROWS + 1)
    yield claimed("network", MAX_INTERVALS + 1)
    yield from (enlarged(*size) for size in (("network", MAX_INTERVALS), ("sample", MAX_ROWS), ("layers", 100_000)))
    yield telemetry(
        "of zeros",
        lambda whole: {
            name: np.zeros(16_000 if name == "network" else 200_000, table.dtype) for name, table in whole.items()
        },
    )
    yield telemetry("of pressure 1e308", lambda whole: {"network": _with(whole["network"], "pressure", 1e308)})
    for number in range(6):
        yield telemetry(f"drawn {number}", lambda whole, n=number: extreme(Random(f"{SEED} {n}"), whole))


def _with(table, column, value):
    table[column] = value
    return table


BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "C128": 128,
}  # fmt: skip
"""Number formats of safetensors, and some that it may learn."""
SHAPES = {"fc1.weight": [24, 16], "fc1.bias": [24], "fc2.weight": [4, 24], "fc2.bias": [4]}


def weights_of(dtype):
    """The bytes of a weights file of `PRUNE`'s model, all of one number format."""
    header, place = {}, 0
    for name, shape in SHAPES.items():
        size = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    width = max(1, BITS[dtype] // 8)
    return safetensors(header, bytes(byte // width % 2 if byte % width == 0 else 0 for byte in range(place)))


SHORT = ("--pruning-epochs", "1", "--regrowth-epochs", "0", "--out", "out")


def dtypes():
    for dtype in BITS:
        for backend in ("numpy", "torch"):
            arguments = [*PRUNE, "--checkpoint", "own.safetensors", "--backend", backend, *SHORT]
            yield Case(
                f"weights of {dtype}, {backend}",
                arguments,
                lambda folder, _, dtype=dtype: (folder / "own.safetensors").write_bytes(weights_of(dtype)),
            )
        yield Case(
            f"a run's weights of {dtype}",
            ["export", "run", "--out", "out.safetensors"],
            lambda folder, m, dtype=dtype: (m.copy_run(folder) / "model.safetensors").write_bytes(weights_of(dtype)),
        )


CIFAR = ["prune", "--dataset", "cifar10", "--data-dir", "data", "--model", "resnet20"]


def kinds():
    """Every kind of file where a data set, a lock, a recipe or a table is expected."""
    for kind in KINDS:
        name = kind.__name__
        for words in (
            ["compare", "--recipe", "own.toml"],
            ["law", "--recipe", "own.toml"],
            ["law", "--from", "own.toml"],
        ):
            if kind is not a_link_outside:
                yield Case(f"{' '.join(words)} {name}", words, lambda folder, _, kind=kind: kind(folder / "own.toml"))
        if kind is not a_folder:
            yield Case(f"cifar of {name}", CIFAR, lambda folder, _, kind=kind: _cifar(folder / "data", kind))
        yield Case(f"a lock of {name}", [*PRUNE, *SHORT], lambda folder, _, kind=kind: _lock(folder / "out", kind))
        yield Case(f"picture of {name}", [*IMAGE_FOLDER, "--dense-epochs", "0", *SHORT],
                   lambda folder, _, kind=kind: _picture(folder / "data", kind))  # fmt: skip
    for backend in ("numpy", "torch"):
        some = ("--train-samples", "64", "--dense-epochs", "0", "--model", "mlp:784-4-10", "--backend", backend)
        yield Case(f"mnist of 64 MB in 70 kB, {backend}", [*MNIST, *some, *SHORT], _packed_mnist)
    yield Case("mnist of 200 MB of zeros", MNIST, _much_mnist)


def _cifar(data, kind):
    (data / "cifar-10-batches-py").mkdir(parents=True)
    kind(data / "cifar-10-batches-py" / "data_batch_1")


def _lock(out, kind):
    out.mkdir()
    kind(out / "lock")


def _picture(data, kind):
    write_folder(data)
    file = data / "train" / "ant" / "0.png"
    file.unlink()
    kind(file)


def _much_mnist(folder, _):
    file = write_mnist(folder / "data") / "train-images-idx3-ubyte"
    with file.open("wb") as opened:
        opened.write(idx_bytes(np.zeros((0, 28, 28)))[:4] + b"".join(n.to_bytes(4, "big") for n in (250_000, 28, 28)))
        opened.truncate(16 + 250_000 * 784)


def _packed_mnist(folder, _):
    raw, count = write_mnist(folder / "data"), 85_000
    images, labels = (raw / f"train-{name}" for name in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    first = [np.frombuffer(file.read_bytes()[start:], np.uint8) for file, start in ((images, 16), (labels, 8))]
    whole = [np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint8)]
    for file, some, all_ in zip((images, labels), first, whole, strict=True):
        all_.reshape(-1)[: len(some)] = some
        file.unlink()
        Path(f"{file}.gz").write_bytes(gzip.compress(idx_bytes(all_), 1))


def named_run(names_):
    """A run whose folder, model and data set have the first of some names, and its layers all of them."""

    def prepare(folder, material):
        run = material.copy_run(folder)
        values = json.loads((run / "report.json").read_text())
        layer = values["layers"][0]
        found = [{**layer, "name": name} for name in names_]
        totals = {f"{which}_weights": len(found) * layer[which] for which in ("total", "surviving")}
        own = {"model": names_[0], "dataset": names_[0], "warnings": list(names_), "layers": found}
        (run / "report.json").write_text(json.dumps({**values, **totals, **own}))
        whole = read_tables(run / "telemetry.npz")
        for table in [table for table in whole if "layer" in SCHEMA[table].names]:
            rows = whole[table][whole[table]["layer"] == "fc1.weight"]
            whole[table] = np.concatenate([_with(rows.copy(), "layer", name) for name in names_])
        (run / "telemetry.npz").write_bytes(file_content(whole))
        shutil.move(run, folder / f"r{names_[0]}")

    return Case(f"report named {short(names_[0])}", ["report", f"r{names_[0]}", "--out", f"p{names_[0]}"], prepare)


def named_table(name):
    """A CSV file and its columns of a name."""

    def prepare(folder, _):
        column = '"' + name.replace('"', '""') + '"'
        text = f"{column},density\n" + "".join(f"{2.0**power},{0.1 * 0.7**power}\n" for power in range(-5, 5))
        _write(folder, f"f{name}.csv", text)

    arguments = ["law", "--from", f"f{name}.csv", f"--x={name}", "--out", f"o{name}"]
    return Case(f"table named {short(name)}", arguments, prepare)


def names():
    yield from (named_run(NAMES[start : start + 7]) for start in range(0, len(NAMES), 7))
    yield from map(named_table, NAMES)


GROUPS = {
    "generated tables": list(tables()),
    "generated recipes": list(recipes()),
    "generated runs": list(runs()),
    "generated weights": list(dtypes()),
    "generated files": list(kinds()),
    "generated names": list(names()),
}
