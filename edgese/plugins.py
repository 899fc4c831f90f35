"""Code from outside that registers networks: a file or module named by `--plugin`, or what installed packages offer.

    import_plugin("my_network.py")                    # it calls `edgese.networks.register`

    [project.entry-points."edgese.networks"]          # in a package's pyproject.toml: no --plugin is needed
    my-network = "my_package.networks"

What was named reaches the processes that a command starts through an environment variable. It names code and changes no
numbers. They ask for it, and for installed packages, only where a name is not known otherwise.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from edgese.errors import ConfigError

GROUP = "edgese.networks"  # of entry points
VARIABLE = "EDGESE_PLUGINS"  # JSON: the modules named to this process or its parents, and where they are looked for

logger = logging.getLogger(__name__)


def import_plugin(named: str) -> bool:
    """Import a .py file or a module, and name it to the processes that this one starts; False: it was imported before.

    A file is imported under its stem, its folder last in `sys.path`: files beside it are found and hide nothing.

    Raises:
        ConfigError: there is no such file or module, it cannot be imported, or another module has its name.
    """
    label, path = f"--plugin {named}", Path(named)
    is_file = path.suffix == ".py" or path.is_file()
    name = path.stem if is_file else named
    if is_file and (path.suffix != ".py" or not path.is_file()):
        raise ConfigError(f"{label}: found no such file, wanted a .py file or the name of a module")
    is_new = name not in sys.modules
    if is_file:
        _look_in([str(path.resolve().parent)])
    _import(label, name)
    if is_file:
        other = getattr(sys.modules[name], "__file__", None) or "Python itself"
        if Path(other).resolve() != path.resolve():
            raise ConfigError(f"{label}: {name} is the name of {other} too; rename the file")
    modules = dict.fromkeys([*_inherited()["modules"], name])
    folders = [str(Path(folder).resolve()) for folder in sys.path]  # a child may be started elsewhere
    os.environ[VARIABLE] = json.dumps({"modules": list(modules), "folders": folders})
    return is_new


def import_others() -> Iterator[str]:
    """Import what was named to this process's parents and what installed packages offer; gives what failed."""
    from importlib.metadata import entry_points  # late: most commands know all names

    inherited = _inherited()
    _look_in(inherited["folders"])
    offered = {name: f"--plugin {name}" for name in inherited["modules"]}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else "an installed package"
        offered.setdefault(point.module, f"{package}: its network {point.name}")
    for name, label in offered.items():
        try:
            _import(label, name)
        except ConfigError as error:
            yield str(error)


def _inherited() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(os.environ.get(VARIABLE) or '{"modules": [], "folders": []}')
    return found


def _look_in(folders: list[str]) -> None:
    sys.path += [folder for folder in folders if folder not in sys.path]


def _import(label: str, name: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever its code does
        logger.info("%s cannot be imported", label, exc_info=True)
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        where = "" if str(place[0]).startswith("<") else " in {}, line {}".format(*place)
        what = " ".join(str(error).split())
        raise ConfigError(f"{label}: cannot be imported: {type(error).__name__}{where}: {what}") from error
