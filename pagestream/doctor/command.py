"""`pagestream doctor`: checks this machine and says what to do."""

import json
from collections.abc import Sequence

from pagestream.doctor.accelerator import accelerator_findings, this_machine
from pagestream.doctor.finding import State, as_json, as_text
from pagestream.doctor.options import READER, DoctorOptions
from pagestream.doctor.system import system_findings
from pagestream.environment import variables
from servicekit.errors import StartupError
from servicekit.log import print_error


def main(arguments: Sequence[str]) -> int:
    """Prints what it finds; returns 1 if something needed is missing."""
    try:
        options = READER.read(arguments).build(DoctorOptions)
    except StartupError as error:
        print_error("pagestream doctor", error)
        return 2
    machine = this_machine()
    findings = accelerator_findings(machine, variables())
    findings += system_findings(variables(), machine.num_gpus)
    print(json.dumps(as_json(findings), indent=2) if options.json else as_text(findings))
    return int(any(one.state is State.MISSING for one in findings))
