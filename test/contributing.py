"""The commands in CONTRIBUTING.md do what it says: they are run in their order, in a copy of the tree.

usage: contributing.py SOURCE-DIRECTORY

`sh test/run.sh`, which takes long, only lists what it would build.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    blocks = re.findall(r"^```sh\n(.*?)^```$", (root / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = "".join(blocks)
    if not commands:
        print("CONTRIBUTING.md has no command")
        return 1
    for tool in ("cmake", "ninja", "cc"):
        if shutil.which(tool) is None:
            print("skipped: there is no %s" % tool)
            return SKIPPED
    script = "set -ex\n" + re.sub(r"^(sh test/run.sh)$", r"\1 --list", commands, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as directory:
        tree = pathlib.Path(directory) / "zmalloc"
        shutil.copytree(root, tree, ignore=shutil.ignore_patterns("build", ".git", "__pycache__"))
        return subprocess.run(["sh", "-c", script], cwd=tree, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
