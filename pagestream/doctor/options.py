"""The options of `pagestream doctor`."""

from dataclasses import dataclass, field

from servicekit.options import OptionReader, Options, about
from servicekit.values import Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions(Options):
    """How it reports."""

    json: bool = field(
        default=False, metadata=about(Flags(), "print one JSON object, for a program")
    )


READER = OptionReader(
    program="pagestream doctor",
    description="Checks what this machine has to serve: for each thing OK, a note, or what is "
    "missing and what to do. The exit code is 1 if something that is needed is missing.",
    prefix="PAGESTREAM_DOCTOR_",
    groups={"doctor": DoctorOptions},
)
