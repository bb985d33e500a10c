"""Options and TOML files that no run can have."""

from front_door_case import Case, short

HUGE = str(10**400)

OPTIONS = [
    Case(short(" ".join(words)), words)
    for words in (
        *(["prune", option, value] for option in ("--seed", "--batch-size", "--train-samples", "--dense-epochs")
          for value in (HUGE, "-1", "1e3", "nan", "1" * 5000, "²", "0x10", "")),
        *(["prune", option, "1000000000000"] for option in ("--pruning-epochs", "--regrowth-epochs", "--dense-epochs")),
        *(["prune", "--sparsity", value] for value in ("nan", "inf", "-inf", "1e400", "1e-400", "2", "-0.0", "0.5.5")),
        *(["prune", "--model", name] for name in (
            "mlp:1000000-1000000", "mlp:64-1000000000000-10", f"mlp:64-{HUGE}-10", f"mlp:64-{'9' * 5000}-10", "mlp:",
            "mlp:64-0-10", "mlp:64-000-10", "mlp:64--10", "mlp:-1-10", "mlp:64-٣-10", "mlp:64-" + "1-" * 50_000 + "10",
            "timm:", "timm:../../etc/passwd", "torchvision:\x1b[31mred", "torchvision:quantized_resnet", "x" * 100_000,
            "\x1b]0;title\x07", "lenet300\n", "lenet300\x00", "\u202elenet300", "\udcff",
        )),
        *(["prune", option, value] for option in (
            "--dataset", "--backend", "--method", "--controller", "--device", "--telemetry", "--amp",
        ) for value in ("\x1b[2J\x1b[H", "a\nb", "")),
        ["prune", "--device", "cuda:99999999999999999999"],
        ["prune", "--device", "cpu:-3"],
        ["prune", "--exclude", "[" * 1000],
        ["prune", "--exclude", "\x1b[31m*"],
        ["prune", "--include", "\udcff"],
        ["prune", "--out", "a\x00b"],
        ["prune", "--out", "\udcff"],
        ["prune", "--out", "a\x1b[31mb"],
        ["prune", "--out", "x" * 5000],
        ["prune", "--recipe", "\x00.toml"],
        ["prune", "--recipe", "/dev/zero"],
        ["prune", "--recipe", "./"],
        ["prune", "--recipe", "x" * 5000 + ".toml"],
        ["prune", "--recipe", "\x1b[31m"],
        ["prune", "--checkpoint", "/dev/zero"],
        ["prune", "--checkpoint", "/dev/zero.safetensors"],
        ["prune", "--checkpoint", "a\x00b"],
        ["prune", "--checkpoint", "."],
        ["prune", "--dataset", "mnist", "--data-dir", "a\x00b"],
        ["prune", "--dataset", "mnist", "--data-dir", "/dev/null"],
        ["prune", "--dataset", "imagefolder", "--data-dir", "x" * 5000],
        ["prune", "--dataset", "mnist", "--data-dir", "x" * 5000],
        ["prune", "--dataset", "cifar10", "--data-dir", "x" * 5000],
        ["prune", "--checkpoint", "x" * 5000],
        ["prune", "--dataset", "cifar10", "--data-dir", "/dev/null"],
        ["compare", "--seeds", HUGE],
        ["compare", "--seeds", "1" * 5000],
        ["compare", "--seeds", "-1"],
        ["compare", "--sparsities", "nan,0.5"],
        ["compare", "--sparsities", "0.5,0.5"],
        ["compare", "--gates", "channels", "--latency", "nan,0.5"],
        ["compare", "--methods", "taylor", "--parameters", "0.5"],
        ["compare", "--methods", "\x1b[31m"],
        ["compare", "--out", "\udcff"],
        ["law", "--lowest", "nan"],
        ["law", "--lowest", "-1e308", "--highest", "1e308"],
        ["law", "--step", "1e-300"],
        ["law", "--step", "5e-324"],
        ["law", "--step", "inf"],
        ["law", "--epochs", "1000000000000"],
        ["law", "--sparsity", "nan"],
        ["bench", "step", "--batch-size", HUGE],
        ["bench", "step", "--batch-size", "1000000000000000000"],
        ["bench", "step", "--rotations", "1000000000000000000"],
        ["bench", "telemetry", "--rotations", "-1"],
        ["bench", "latency", "nowhere", "--threads", "1000000000"],
        ["bench", "latency", "nowhere", "--batch-sizes", HUGE],
        ["bench", "latency", "nowhere", "--batch-sizes", "nan"],
        ["bench", "latency", "a\x00b"],
        ["export", "/dev/zero"],
        ["export", "\udcff"],
        ["report", "/proc/self/mem"],
        ["report", "a\x1b[31mb"],
        ["report", "x" * 5000],
        ["recipes", "\x1b[31m"],
        ["recipes", "../recipes/digits"],
        ["\x1b[31m"],
        ["--\x1b[31m"],
        ["prune", "--seed"],
    )
]  # fmt: skip


def recipe(content, *more):
    """The case of a TOML file with this content, text or bytes."""
    raw = content if isinstance(content, bytes) else content.encode()
    words = ["prune", "--recipe", "bad.toml", *more]
    return Case(short(content), words, lambda folder, material: (folder / "bad.toml").write_bytes(raw))


RECIPES = [
    *(recipe(content) for content in (
        b"\xff\xfe", b"\x00", b"sparsity = 0.5\x00", b"seed = 1\r\r", b"\x1b[31m", b"seed = 0x" + b"f" * 20_000,
        b"[" * 100_000, b"x = " + b"[" * 100_000, b"x = " + b"[" * 500 + b"]" * 500, b"a." * 2000 + b"b = 1",
        "\ufeff\ufeffsparsity = 0.5".encode(), "sparsity = 0.5".encode("utf-16"), b"[[pruning]]\nepochs = 3",
        b"model = " + b'"' + b"x" * 1_000_000 + b'"',
        b"#" * (2 << 20),
    )),
    *(recipe(content) for content in (
        f"seed = {HUGE}", f"seed = {'1' * 5000}", "seed = -1", "seed = 9223372036854775808", "seed = nan", "seed = inf",
        "seed = 1979-05-27", "seed = 1\nseed = 2", "sparsity = nan", "sparsity = inf", f"sparsity = {HUGE}",
        "sparsity = 1e400", "sparsity = [0.5]", "sparsity = '0.5'", "batch_size = 1000000000000000000",
        "batch_size = -5", "train_samples = -1", "train_samples = 4294967296", "workers = 1000000", "workers = -1",
        "device = 3", "model = 'mlp:1000000-1000000'", "model = \"a\\u0000b\"", "model = \"\\u001b[31m\"",
        "checkpoint = \"a\\u0000b\"", "data_dir = \"a\\u001bb\"", "include = 'fc1'", "include = [1]",
        "include = [[\"fc1\"]]", "exclude = [\"\\u0000\"]", "exclude = [0xffffffffffffffffffffffffff]",
        "augment = 1", "compile = 'no'", "optimizer = 'sgd'", "[optimizer]\nname = 'lion'",
        "[optimizer]\nname = 'sgd'\nmomentum = nan", "[optimizer]\nname = 'sgd'\nmomentum = 1.0",
        "[optimizer]\nweight_decay = 1e300", "[pruning]\nlearning_rate = 1e300", "[dense]\nfinal_learning_rate = 1e39",
        "[pruning]\npresence_learning_rate = 1e300",
        "[optimizer]\nweight_decay = -inf", "[optimizer]\nweight_decay = nan", "[dense]\nlearning_rate = inf",
        "[dense]\nlearning_rate = nan", "[dense]\nlearning_rate = -1.0", "[dense]\nlabel_smoothing = 1.0",
        "[dense]\nepochs = 1000000000000", f"[pruning]\nepochs = {HUGE}", "[pruning]\nepochs = 1.0",
        "[pruning]\npresence_learning_rate = 0.0", "[pruning]\ncontroller_step = nan",
        "[pruning]\ncontroller_step = -1.0", "[regrowth]\npresence_decay = 1.5", "[regrowth]\npresence_reset = inf",
        "[pruning.epochs]\nx = 1", "[nothing]", "\"\\u001b[31m\" = 1", "[\"\\u0000\"]", "format = 2",
    )),
    recipe("[pruning]\nepochs = 3\n[pruning]\nepochs = 4"),
    recipe("pruning = 3", "--pruning-epochs", "4"),
    recipe("pruning = [1]", "--pruning-epochs", "4"),
]  # fmt: skip
