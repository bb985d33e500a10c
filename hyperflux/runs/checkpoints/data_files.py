"""The data of a resumed run beside those that it started with: the same, mended here and there, or others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperflux.errors import InputError


@dataclass(frozen=True)
class ImageFiles:
    """What a checkpoint holds of `Backend.files`."""

    files: dict[str, str]


def changed_data(dataset: str, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """A warning if a run can go on although its data have another fingerprint, because few images have changed.

    Args:
        dataset: Name of the data set.
        then: `Backend.files` when the run started; empty for data that are not a folder of images.
        now: The same today.

    Raises:
        InputError: A class has other files, or half of the images that are compared have changed.
    """
    for folder in sorted(name for name in {**then, **now} if name.endswith("/")):
        if then and now and then.get(folder) != now.get(folder):
            raise InputError(
                f"data set {dataset}: {_other_files(folder, then, now)}; put its files back as they were (a lost image "
                "may be replaced by another of its size, under its name) or set data_dir in the run's config.toml to a "
                "folder that has them, then resume"
            )
    images = [name for name in then if not name.endswith("/")]
    changed = [name for name in images if now.get(name) != then[name]]
    if not images or 2 * len(changed) >= len(images):
        raise InputError(
            f"data set {dataset}: is not the one that this run started with; set data_dir in the run's config.toml to "
            "the folder of that one, or start a new run"
        )
    which = f", such as {changed[0]}" if changed else ""
    return (
        f"data set {dataset}: images have changed since this run started{which}; it goes on with them, and ends "
        "otherwise than it would have without the change"
    )


def _other_files(folder: str, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    before, after = (int(files.get(folder, "0").partition(" ")[0]) for files in (then, now))
    if before == after:
        return f"{folder} holds images of other names than when this run started"
    return f"{folder} holds {after} image{'s'[: after != 1]}, and held {before} when this run started"
