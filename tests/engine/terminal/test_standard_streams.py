"""Processes whose output nobody reads, or whose terminal lacks the characters: a run goes on, a command ends by SIGPIPE."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "from rlpheads.engine.terminal import standard_streams as s; s.keep_running(); import sys\n"
COMMAND = """
from rlpheads.engine.terminal import standard_streams as s
import sys
def command():
    {body}
    return 0
sys.exit(s.run_command(command))
"""
LOCALE_C = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}


def python(code, *, env=None, **streams):
    """Run a program, with its output read unless said otherwise."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | (env or {}), timeout=60, check=False, **streams
    )


@pytest.fixture
def unread():
    """The end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def full():
    with Path("/dev/full").open("wb") as device:
        yield device


@pytest.mark.wrong("output")
@pytest.mark.parametrize(
    ("env", "shown"),
    [
        (LOCALE_C, b"epoch 0-1 lambda 1 \\u732b \\xe9"),
        ({"PYTHONIOENCODING": "ascii"}, b"epoch 0-1 lambda 1 \\u732b \\xe9"),
        ({"PYTHONIOENCODING": "latin-1"}, b"epoch 0-1 lambda 1 \\u732b \xe9"),
        ({"PYTHONIOENCODING": "cp1252"}, b"epoch 0\x961 lambda 1 \\u732b \xe9"),
        ({"PYTHONIOENCODING": "utf-8"}, "epoch 0–1 λ 1 猫 é".encode()),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(env, shown):
    text = "epoch 0–1 λ 1 猫 é"
    ended = python(f"{RUN}print({text!a}); print({text!a}, file=sys.stderr)", env=env)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, shown + b"\n", shown + b"\n")


@pytest.mark.wrong("output")
def test_bytes_of_a_name_that_are_no_utf8_are_printed_as_escapes():
    ended = python(f"{RUN}import os; print(os.fsdecode(b'caf\\xe9'))", env={"PYTHONIOENCODING": "utf-8"})
    assert (ended.returncode, ended.stdout) == (0, b"caf\\xe9\n")


@pytest.mark.wrong("output")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_goes_on_when_its_reader_goes(stream, unread, tmp_path):
    code = f"{RUN}[print('line', file=sys.{stream}) for _ in range(9)]; open('done', 'w')"
    ended = python(code, cwd=tmp_path, **{stream: unread})
    assert (ended.returncode, ended.stdout or b"", ended.stderr or b"") == (0, b"", b"")
    assert (tmp_path / "done").exists()


@pytest.mark.wrong("output")
def test_a_run_goes_on_when_the_disk_of_its_output_is_full(full, tmp_path):
    ended = python(f"{RUN}print('line'); open('done', 'w')", cwd=tmp_path, stdout=full)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


@pytest.mark.wrong("output")
def test_a_run_whose_streams_are_closed_goes_on(tmp_path):
    code = f"{RUN}print('line'); print('line', file=sys.stderr); open('done', 'w')"
    subprocess.run(["bash", "-c", f'{sys.executable} -c "$1" >&- 2>&-', "bash", code], cwd=tmp_path, check=True)
    assert (tmp_path / "done").exists()


@pytest.mark.wrong("output")
@pytest.mark.parametrize("body", ["print('line')", "sys.stdout.write('no end of line')"])
def test_a_command_ends_by_sigpipe_when_its_reader_goes(body, unread):
    ended = python(COMMAND.format(body=body), stdout=unread)
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.wrong("output")
def test_a_command_tidies_up_before_it_ends(unread, tmp_path):
    body = "try: print('line')\n    except OSError: open('mistaken', 'w')\n    finally: open('tidied', 'w')"
    ended = python(COMMAND.format(body=body), stdout=unread, cwd=tmp_path)
    assert ended.returncode == -signal.SIGPIPE
    assert [path.name for path in tmp_path.iterdir()] == ["tidied"]


@pytest.mark.wrong("output")
def test_a_command_whose_output_has_no_room_says_so(full):
    ended = python(COMMAND.format(body="print('line')"), stdout=full)
    assert ended.returncode == 74
    assert ended.stderr.decode() == f"error: the output cannot be written: {os.strerror(errno.ENOSPC)}\n"


def test_a_commands_code_and_output_are_its_own():
    ended = python(COMMAND.format(body="print('out'); print('err', file=sys.stderr); return 3"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")


def test_output_that_would_block_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = f"{RUN}print('x' * 200_000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as read:
            assert len(read.read()) == 200_001
    assert process.returncode == 0
