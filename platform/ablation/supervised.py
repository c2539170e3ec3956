"""`python -m ablation.supervised` is the command `ablation` for its supervisor: see `FAILED`."""

import sys

from ablation.cli import main
from ablation.supervise import FAILED

if __name__ == "__main__":
    code = main()
    sys.exit(FAILED if code == 1 else code)
