"""`python -m edgewright` is the command `edgewright`."""

from edgewright.cli import main

if __name__ == "__main__":
    main()
