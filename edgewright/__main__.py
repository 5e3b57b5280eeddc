"""`python -m edgewright` is the command `edgewright`."""

from edgewright.rooms import leave_working_directory

if __name__ == "__main__":
    leave_working_directory()

    from edgewright.cli import main

    main()
