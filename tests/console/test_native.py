"""Output of libraries in C: kept from the console, named after a failure, told where it ended the process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import ctypes, os, sys
from raymae.console.native import native_output_kept
with native_output_kept():
    os.write(2, b"[E] a library's own line\\n")
    print("a line of ours", file=sys.stderr)
    {then}
"""


def run(then: str, folder: Path) -> tuple[int, str, list[str]]:
    """Run a block that ends so; its status, standard error, and the content of the files that it left."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(then=then)], capture_output=True, text=True, env={"TMPDIR": str(folder)}
    )
    return done.returncode, done.stderr, [path.read_text() for path in folder.glob("raymae-*.log")]


def test_a_librarys_lines_are_kept_from_the_console(tmp_path: Path) -> None:
    assert run("pass", tmp_path) == (0, "a line of ours\n", [])
    assert run("sys.exit(0)", tmp_path) == (0, "a line of ours\n", [])
    status, said, files = run("raise KeyboardInterrupt", tmp_path)
    assert (status, "what libraries wrote" in said, files) == (-2, False, [])


def test_a_failure_names_them(tmp_path: Path) -> None:
    status, said, files = run("sys.exit('error: no')", tmp_path)
    assert status == 1
    assert said == f"a line of ours\nwhat libraries wrote: {next(tmp_path.glob('raymae-*'))}\nerror: no\n"
    assert files == ["[E] a library's own line\n"]


@pytest.mark.parametrize("end", ["os._exit(7)", "ctypes.string_at(0)"])
def test_a_library_that_ends_the_process_is_told(tmp_path: Path, end: str) -> None:
    """As Ray's core does where its daemons have gone; standard error ends when the last process has closed it."""
    started = time.monotonic()
    status, said, _ = run(end, tmp_path)
    assert status != 0
    assert "error: the process was ended; what libraries wrote last:\n  [E] a library's own line\n" in said
    assert time.monotonic() - started < 10
    assert ("Segmentation fault" in said) == ("string_at" in end)


def test_what_isnt_the_processs_own_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from raymae.console.native import native_output_kept

    before = sys.stderr
    with native_output_kept():
        assert sys.stderr is before
        print("shown", file=sys.stderr)
    assert capsys.readouterr().err == "shown\n"
