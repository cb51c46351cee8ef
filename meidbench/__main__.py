"""Run the command line as ``python -m meidbench``."""

from meidbench.cli import main

main()
