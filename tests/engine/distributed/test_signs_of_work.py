"""A thread that works is told from one that waits or goes round in a circle, in real threads and processes."""

import json
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import hashlib, json, os, pathlib, subprocess, sys, tempfile, threading, time
import psutil, torch
from rlpheads.engine.distributed import signs_of_work
from rlpheads.engine.distributed.progress import Progress

signs_of_work._QUIET_S, signs_of_work._EFFORT_S = 0.0, 0.05

def stalls_in(code, looks):
    if (child := os.fork()):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    global progress
    progress = Progress()
    signs = signs_of_work.SignsOfWork(progress)

    def look(looks):
        stalled = False
        while looks and not stalled:
            time.sleep(0.1)
            looks -= 1
            stalled = signs.has_stalled(1.5)
        for child in psutil.Process().children():
            child.kill()
        os._exit(stalled)

    progress.enter("a phase")
    threading.Thread(target=look, args=(looks,)).start()
    exec(code, globals())

print(json.dumps({name: stalls_in(*given) for name, given in json.load(sys.stdin).items()}))
"""
"""For each code, looks so often at a process whose main thread runs it; says whether it was found to stall for 1.5 s."""
WAITS = {
    "sleep": "time.sleep(100)",
    "short sleeps": "while True: time.sleep(0.01)",
    "a lock": "threading.Lock().acquire() and threading.Semaphore(0).acquire()",
    "one line": "while True: pass",
    "functions": """
        def turned(number): return (number * 7 + 1) % 1009
        numbers = list(range(1000))
        while True: numbers = sorted(map(turned, numbers))
    """,
    "a child that sleeps": "subprocess.run(['sleep', '100'])",
}
WORKS = {
    "a long function of C": "hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)",
    "a child that computes": "subprocess.run([sys.executable, '-c', 'while True: pass'])",
    "a thread that reads": """
        path = pathlib.Path(tempfile.mkdtemp(), 'file')
        path.write_bytes(bytes(1 << 20))
        def read():
            while True:
                path.read_bytes(); time.sleep(0.05)
        threading.Thread(target=read, daemon=True).start()
        time.sleep(100)
    """,
    "turns of a long loop": """
        while True:
            sum(range(200000))
            progress.take_turn()
    """,
    "ever new lines": """
        for number in range(1 << 30):
            code = '\\n' * (number % 9973) + 'sum(range(20000))'
            exec(compile(code, 'made', 'exec'))
    """,
}


def test_a_phase_stalls_where_its_rank_waits_or_goes_round():
    codes = {name: (textwrap.dedent(code), 200) for name, code in WAITS.items()}
    codes |= {name: (textwrap.dedent(code), 30) for name, code in WORKS.items()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(codes),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout) == dict.fromkeys(WAITS, True) | dict.fromkeys(WORKS, False), done.stderr
