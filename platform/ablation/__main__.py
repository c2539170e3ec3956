"""`python -m ablation` is the command `ablation`."""

import sys

from ablation.cli import main

if __name__ == "__main__":
    sys.exit(main())
