"""The command `tikhonov`: the binary in this package, with the libtorch of the torch that this Python imports.

The binary looks for torch beside this package. Where torch is elsewhere (a .pth file, system packages, a user's
folder), LD_LIBRARY_PATH says where. torch itself is not imported. Imports little: it runs before every command.
"""

import os
import sys

WANTED = "2.11"
BINARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "tikhonov")


class NoTorch(Exception):
    """This Python has no torch, or one that the binary was not built for. The text ends with the remedy."""


def environment():
    """The variables with which BINARY starts: those of this process, LD_LIBRARY_PATH longer where need be."""
    torch = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(BINARY))), "torch")
    variables = dict(os.environ)
    if not os.path.isfile(os.path.join(torch, "lib", "libtorch_cpu.so")):
        from importlib.util import find_spec

        spec = find_spec("torch")
        places = list(spec.submodule_search_locations or []) if spec else []
        torch = next((place for place in places if os.path.isfile(os.path.join(place, "lib", "libtorch_cpu.so"))), None)
        if torch is None:
            raise NoTorch(f"there is no torch in {sys.executable}\n  {sys.executable} -m pip install 'torch=={WANTED}.*'")
        before = variables.get("LD_LIBRARY_PATH")
        variables["LD_LIBRARY_PATH"] = os.path.join(torch, "lib") + (f":{before}" if before else "")
    version = version_of(torch)
    if not version.startswith(f"{WANTED}."):
        raise NoTorch(
            f"torch {version} is in {torch}, and this tikhonov was built for torch {WANTED}\n"
            f"  {sys.executable} -m pip install 'torch=={WANTED}.*', here or in a virtual environment of its own"
        )
    return variables


def version_of(torch):
    """The version in torch/version.py."""
    try:
        with open(os.path.join(torch, "version.py"), encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("__version__"))
    except (OSError, StopIteration):
        return "of an unknown version"
    return line.partition("=")[2].strip().strip("'\"")


def main():
    try:
        variables = environment()
    except NoTorch as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.stdout.flush()
    try:
        os.execve(BINARY, [BINARY, *sys.argv[1:]], variables)
    except OSError as error:
        print(f"error: {BINARY} does not start: {error.strerror}\n  install tikhonov-train again", file=sys.stderr)
        sys.exit(2)
