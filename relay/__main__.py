"""`python -m relay` is the command `relay`."""

import sys

from relay.cli.main import main

sys.exit(main())
