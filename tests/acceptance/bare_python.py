"""An interpreter that sees some distributions, what they require, and nothing else."""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path
from venv import EnvBuilder

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["bare_python"]


def bare_python(folder: Path, *distributions: str, packages: tuple[Path, ...] = ()) -> Path:
    """Make a virtual environment without a network: links to what is installed here.

    Args:
        folder: where; made.
        distributions: as pip takes them, such as ``celery[redis]``.
        packages: folders or modules that are to be found beside them.

    Returns:
        Its interpreter.
    """
    EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in _with_what_they_require(distributions):
        found = distribution(name)
        tops = {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}
        for top in tops:
            (site / top).symlink_to(str(found.locate_file(top)))
    for package in packages:
        (site / package.name).symlink_to(package)
    return folder / "bin" / "python"


def _with_what_they_require(distributions: tuple[str, ...]) -> set[str]:
    done: set[str] = set()
    waiting = [Requirement(one) for one in distributions]
    while waiting:
        one = waiting.pop()
        if str(one) in done:
            continue
        done.add(str(one))
        for line in distribution(one.name).requires or []:
            required = Requirement(line)
            marker = required.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (one.extras or {""})):
                waiting.append(required)
    return {canonicalize_name(Requirement(one).name) for one in done}
