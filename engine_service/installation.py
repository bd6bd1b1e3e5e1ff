"""Checks that the packages that an engine imports are installed and are the right ones."""

import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

import engine_service
from engine_service.errors import StartupError

EXTRA_MODULES = ("huggingface_hub", "llguidance", "numpy", "torch", "tqdm", "triton")
"""Import names of the packages in the extra `engine`."""

VLLM_PROTOCOL = ("smg-grpc-proto", "0.4.28")
"""The package of the vLLM service's protocol, and the version whose fields all have a bound."""


def check_installation() -> None:
    """Checks, in about a millisecond and without importing, that later imports will succeed.

    Raises:
        StartupError: Packages are missing, or `kernels` is not ours; says what to install.
    """
    missing = [name for name in EXTRA_MODULES if find_spec(name) is None]
    if missing:
        raise StartupError(
            f"packages are not installed: {', '.join(missing)}; to install all that the engine "
            f"needs, run {sys.executable} -m pip install 'pagestream[engine]'"
        )
    _check_kernels()


def check_vllm_protocol() -> None:
    """Checks that the protocol of `--vllm-grpc` is installed.

    Raises:
        StartupError: It is missing or of another version; says what to install.
    """
    name, version = VLLM_PROTOCOL
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if found != version:
        has = f"has version {found}" if found else "is not installed"
        raise StartupError(
            f"--vllm-grpc needs the package {name} {version}, which {has}; run {sys.executable} "
            "-m pip install 'pagestream[smg]'"
        )


def _check_kernels() -> None:
    """Refuses the package `kernels` of PyPI, which has the same name as ours."""
    ours = Path(engine_service.__file__).parents[1] / "kernels"
    spec = find_spec("kernels")
    if spec is None or spec.origin is None:
        raise StartupError(
            f"the package kernels is not in {ours.parent}, beside engine_service; install "
            f"pagestream again: run {sys.executable} -m pip install --force-reinstall --no-deps "
            "pagestream"
        )
    found = Path(spec.origin).parent
    try:
        other = importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        other = None
    # Both install into one folder; the later one has overwritten files of the other.
    is_mixed = other is not None and _is_same(Path(str(other.locate_file("kernels"))), ours)
    if _is_same(found, ours) and not is_mixed:
        return
    owner = f"of the distribution kernels {other.version}" if other else "not Pagestream's"
    raise StartupError(
        f"the package kernels in {found} is {owner}, but the engine needs Pagestream's own: "
        f"run {sys.executable} -m pip uninstall kernels, then {sys.executable} -m pip install "
        "--force-reinstall --no-deps pagestream"
    )


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
