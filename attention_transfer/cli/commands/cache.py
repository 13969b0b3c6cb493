"""`attention-transfer cache`: the caches that runs share."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from attention_transfer.cli.flags import takes_settings
from attention_transfer.cli.tables import heading, percent, table
from attention_transfer.config import resolve_config
from attention_transfer.errors import CacheError

cache = App(
    name="cache",
    help="Show, fill, verify and clear the caches that runs share: decoded images and teacher outputs.",
    help_format="plaintext",
    sort_key=4,
)
Folder = Annotated[str | None, Parameter(help="the folder; left out, the user's cache folder")]


@cache.command
def info(*, cache_dir: Folder = None) -> int:
    """Show the cached files, least recently used first.

    attention-transfer cache info
    """
    from attention_transfer.cache.folder import cache_folder, entries
    from attention_transfer.cache.records import Records

    folder = cache_folder(cache_dir)
    cached = entries(folder)
    heading(f"{folder}: {sum(entry.size for entry in cached) / 1e6:,.1f} MB")
    rows = []
    for entry in cached:
        try:
            with Records(entry.path, entry.identity) as records:
                present = records.present()
        except CacheError as error:
            print(f"damaged: {error}")
            continue
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        filled = percent(present.mean()) if len(present) else "empty"
        what = ", ".join(f"{key} {value}" for key, value in entry.about.items() if key != "made")
        rows.append([entry.path.name, f"{entry.size / 1e6:,.1f}", filled, used, what])
    if rows:
        table(["file", "MB", "filled", "last used", "content"], rows)
    return 0


@cache.command
@takes_settings()
def prefill(
    *,
    config: Annotated[str | None, Parameter(help="a YAML file of settings; flags win over it")] = None,
    **settings: Any,
) -> int:
    """Decode all images and compute all teacher outputs now, so that no run has to.

    attention-transfer cache prefill --data-dir photos --teacher-model teacher.pth --augment --augment-views 4

    Runs on the same images with the same teacher, size, augmentation and precision use them, whatever their student,
    seed, beta and learning rate. Logits are cached too where alpha is above 0. Interrupted, it resumes where it was.
    """
    if config is not None:
        from attention_transfer.cli.settings_file import read_settings

        settings = {**read_settings(config), **settings}
    resolved = resolve_config(settings)

    from attention_transfer.training.prefill import prefill_caches

    for role, count in prefill_caches(resolved).items():
        print(f"{role}: {count:,} answers were asked for")
    return 0


@cache.command
def verify(*, cache_dir: Folder = None) -> int:
    """Verify the checksums of everything cached.

    attention-transfer cache verify

    Corrupt records are dropped; the next run that needs them makes them again.
    """
    from attention_transfer.cache.folder import cache_folder, entries
    from attention_transfer.cache.records import Records
    from attention_transfer.progress import progress_bar

    folder, damaged = cache_folder(cache_dir), 0
    for entry in progress_bar(entries(folder), desc="verifying", unit="file"):
        try:
            records = Records(entry.path, entry.identity)
        except CacheError as error:
            print(f"damaged: {error}")
            damaged += 1
            continue
        with records:
            bad = records.damaged()
            if bad and records.is_writable:
                records.forget(bad)
            count = int(records.present().sum())
        damaged += len(bad)
        state = f"{len(bad)} damaged (the first is record {bad[0]})" if bad else "whole"
        print(f"{entry.path.name}: {count:,} records, {state}")
    if damaged:
        raise CacheError(f"{damaged} records in {folder} were damaged; the next run that needs them makes them anew.")
    return 0


@cache.command
def clear(
    *,
    cache_dir: Folder = None,
    kind: Annotated[
        Literal["all", "pixels", "maps", "logits"], Parameter(help="what to remove", show_choices=True)
    ] = "all",
    unused_days: Annotated[float, Parameter(help="remove only what was not used for so many days")] = 0.0,
) -> int:
    """Remove cached files, except those that a living run is using, and the cached timings of number formats.

    attention-transfer cache clear --unused-days 30
    """
    from attention_transfer.cache.folder import PRECISION_FILE, cache_folder, entries, remove, unreadable
    from attention_transfer.cache.in_use import is_in_use

    folder, freed, left = cache_folder(cache_dir), 0, 0
    for entry in entries(folder):
        if kind not in ("all", entry.kind) or time.time() - entry.used < unused_days * 86400:
            continue
        if is_in_use(entry.path):
            left += 1
            continue
        remove(entry)
        freed += entry.size
    if kind == "all" and not unused_days:
        for path in [*unreadable(folder), folder / PRECISION_FILE]:
            path.unlink(missing_ok=True)
    print(f"{freed / 1e6:,.1f} MB are freed in {folder}" + (f"; {left} files are in use and stay" if left else ""))
    return 0
