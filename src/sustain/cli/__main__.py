"""`python -m sustain.cli VERB …`: the command line where no `sustain` script is on the PATH."""

import sys

from sustain.cli import main

if __name__ == "__main__":
    sys.exit(main())
