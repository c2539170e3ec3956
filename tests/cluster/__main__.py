"""A cluster to try things on: `python tests/cluster`, as root. It ends with its input.

A line is a command of the client (`ablation doctor`), or what befalls a machine.
"""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.lab import Lab, missing
from deployed import ROOT

HELP = "worker NAME, cut NAME, mend NAME, crash NAME, lose NAME, or a command of the client."


def main() -> None:
    """Start it, and do what is asked until the input ends."""
    if lacks := missing():
        sys.exit(f"There can be no lab here; this machine lacks {lacks}.")
    with Lab(ABLATION_NODE_CPUS="1", ABLATION_STUDIES=str(ROOT / "studies")) as lab:
        lab.up("head", "keep")
        lab.add_worker("one")
        lab.add_worker("two")
        print(f"It is up; logs are in {lab.home}. {HELP}", flush=True)
        for line in sys.stdin:
            match shlex.split(line):
                case []:
                    continue
                case ["worker", name]:
                    lab.add_worker(name)
                case [("cut" | "mend") as what, name]:
                    getattr(lab.host(name), what)()
                case [("crash" | "lose") as what, name]:
                    getattr(lab.containers[name], what)()
                case command:
                    code, out, err = lab.client(*command)
                    print(f"{out}{err}", f"[{code}]", flush=True)


if __name__ == "__main__":
    main()
