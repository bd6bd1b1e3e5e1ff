"""Prints, as JSON, what torch and Triton say of this machine; a process of its own asks it.

Importing torch takes seconds and may end the process, where its libraries do not fit.
"""

import contextlib
import json

import torch

from engine_service.errors import StartupError


def main() -> None:
    """Prints the report."""
    report: dict[str, object] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [],
        "fault": None,
        "tool": None,
    }
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        report["gpus"] = [
            ".".join(map(str, torch.cuda.get_device_capability(number)))
            for number in range(torch.cuda.device_count())
        ]
    # For example: no driver, or one too old for this torch.
    except Exception as error:
        report["fault"] = (str(error) or type(error).__name__).splitlines()[0]
    # Without Triton the check of the packages says so.
    with contextlib.suppress(ImportError, StartupError):
        from engine_service.worker.toolchain import missing_tool

        report["tool"] = missing_tool()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
