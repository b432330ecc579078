"""Print the versions of this environment that the image needs: raymae's dependencies, those of its extras, and theirs.

Run where the tests pass, on Linux with Python 3.11:

    .venv/bin/python .container/pin.py > .container/constraints.txt
"""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("export", "formats", "s3")


def roots() -> list[Requirement]:
    """What pyproject.toml asks for, and boto3, with which Ray's autoscaler starts nodes on AWS."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in [*named, "boto3"]]


def pins(waiting: list[Requirement]) -> dict[str, str]:
    """By name the versions of what is installed for these requirements."""
    seen: set[tuple[str, str]] = set()
    found: dict[str, str] = {}
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        found[name] = metadata.version(name)
        for extra in {"", *asked.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                needed = [Requirement(text) for text in metadata.requires(name) or []]
                waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return found


if __name__ == "__main__":
    print("# The versions with which the tests pass, on Linux with Python 3.11. To make the list again:")
    print("#   .venv/bin/python .container/pin.py > .container/constraints.txt")
    for name, version in sorted(pins(roots()).items()):
        print(f"{name}=={version.partition('+')[0]}")
