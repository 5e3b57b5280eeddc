"""Which packages are installed; all else is in pyproject.toml, which cannot give a package another folder."""

from setuptools import find_packages, setup

ROOMS = ("artifacts", "compiler", "device_farm", "edgewright", "recipes", "runtime_tests")
# A file in a namespace of optimum's, which its command line finds; no package of ours.
DOOR = "optimum.commands.register"

setup(
    packages=[*find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]), DOOR],
    package_dir={DOOR: "edgewright/optimum"},
)
