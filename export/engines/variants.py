"""The two variants of TensorRT. Their Python interfaces are one but for what a row of the table below says."""

import functools
import importlib
import importlib.util
from dataclasses import KW_ONLY, dataclass

from latentrt.backends.tensorrt.module import TensorRt
from latentrt.environment.install import install_command
from latentrt.errors import BackendError, EnvironmentLacks, RequestError
from latentrt.export.engines.monitor import BuildLog, build_log


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table.

    Args:
        name: as users write it, of the backend and of the folder of its engines.
        title: as its maker writes it.
        module: its Python package.
        extra: the extra of this distribution that installs it.
        capabilities: compute capabilities that it compiles for ahead of time, 89 for sm89; empty where
            it builds for the GPU that is present.
    """

    name: str
    _: KW_ONLY
    title: str
    module: str
    extra: str
    capabilities: tuple[int, ...]

    def installed(self) -> bool:
        """Whether its package can be found; nothing is imported."""
        return importlib.util.find_spec(self.module) is not None


VARIANTS = (
    Variant(
        "tensorrt-rtx",
        title="TensorRT for RTX",
        module="tensorrt_rtx",
        extra="tensorrt-rtx",
        capabilities=(75, 80, 86, 89, 120, 121),
    ),
    Variant("tensorrt", title="TensorRT", module="tensorrt", extra="tensorrt", capabilities=()),
)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A variant at work: its module, and the log that all its builders write to."""

    variant: Variant
    trt: TensorRt
    log: BuildLog

    @property
    def version(self) -> str:
        """The only version of the runtime that reads what is built here."""
        return str(self.trt.__version__)


def variant(name: str) -> Variant:
    """The variant called `name`; a RequestError where there is none."""
    rows = {row.name: row for row in VARIANTS}
    if name not in rows:
        raise RequestError(
            f"backend '{name}' takes no engines built ahead of time",
            expected=" or ".join(rows),
            hint="the other backends compile when they load a bundle",
        )
    return rows[name]


@functools.cache  # TensorRT keeps the first log that it is given
def open_toolkit(row: Variant) -> Toolkit:
    """Imports a variant's package."""
    install = f"install it with: {install_command(row.extra)}"
    if not row.installed():
        raise EnvironmentLacks(f"{row.title} is not installed here", expected=f"the extra '{row.extra}'", hint=install)
    try:
        trt = importlib.import_module(row.module)
    except (ImportError, OSError) as error:
        raise BackendError(f"{row.title} is installed but cannot be imported: {error}", hint=install) from error
    return Toolkit(row, trt, build_log(trt))
