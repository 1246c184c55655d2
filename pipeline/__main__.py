"""`python -m pipeline`: the same as the command `r1`."""

from pipeline.cli import main

raise SystemExit(main())
