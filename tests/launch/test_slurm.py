"""launch/slurm.sbatch under a real Slurm: Debian's, one controller and two nodes on this machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from real_runs import ROOT, TINY, Finished, same_result

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
PACKAGES = ("slurm-wlm", "munge")
CONF = """
ClusterName=rlpheads
SlurmctldHost=localhost
SlurmctldPort=17900
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SwitchType=switch/none
SchedulerParameters=defer_batch,sched_interval=2
ReturnToService=2
RebootProgram=/bin/true
SlurmdTimeout=10
InactiveLimit=0
KillWait=30
MinJobAge=300
BatchStartTimeout=60
UnkillableStepTimeout=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17901 CPUs={cores} State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17902 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE
"""


def why_no_slurm():
    """Say what keeps Slurm from being installed here; None where it is there."""
    if shutil.which("slurmctld") and shutil.which("munged"):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "Slurm is not installed, and apt-get needs root"
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(
        command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"cannot install {', '.join(PACKAGES)}: {done.stderr.strip()[-300:]}"


class Cluster:
    """Munge, a controller and two nodes, each a process of this test."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.conf.write_text(CONF.format(folder=folder, cores=os.cpu_count()))
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir()
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        places = [place.replace("munge.pid-file", "munge.pid") for place in places]
        self._start("munge", "munged", "--foreground", "--force", f"--key-file={key}", *places)
        self._wait_for(lambda: (self.folder / "munge.socket").exists(), "munge's socket")
        self._start("controller", "slurmctld", "-D", "-c", "-f", str(self.conf))
        for node in ("n1", "n2"):
            self.start_node(node)
        self._wait_for(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "two idle nodes")

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))

    def lose_node(self, node: str, run: Path) -> None:
        """Kill a node's daemon, and wait until Slurm has noticed while a run still goes on."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait(20)
        self._wait_for(lambda: node in self.ask("sinfo", "-h", "-N", "-t", "down", "-o", "%N"), f"loss of {node}", 120)
        assert json.loads((run / "status.json").read_text())["status"] == "running", output_of(run)

    def stop(self) -> None:
        with suppress(Exception):
            self.ask("scancel", "--user=root", "--signal=KILL", "--full")
            self.ask("scancel", "--user=root")
        time.sleep(2)
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait(20)

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() or done.stderr.strip()

    def log(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-2500:]}" for path in sorted(self.folder.glob("*.log")))

    def submit(self, run: Path, *flags: str, nodes: str = "2", **env: str) -> str:
        command = ["sbatch", "--parsable", f"--nodes={nodes}", f"--output={run}.slurm.out", "--chdir", str(ROOT)]
        command += ["launch/slurm.sbatch", *flags]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        more = {"RUN": str(run), "RANKS_PER_NODE": "1", "OMP_NUM_THREADS": "1", "PATH": path, **env}
        done = subprocess.run(command, env=self.env | more, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        words = self.ask("scontrol", "show", "job", "-o", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith("JobState=")), "gone")

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("a") as output:  # the daemon has a copy of its own
            self.daemons[name] = subprocess.Popen(command, env=self.env, stdout=output, stderr=output)

    def _wait_for(self, there, what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            if time.monotonic() > deadline:
                pytest.fail(f"no {what}:\n{self.log()}")
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if (reason := why_no_slurm()) is not None:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def settings(folder: Path, epochs: int = 40) -> list[str]:
    (folder / "tiny.yaml").write_text(TINY)
    return ["--config", str(folder / "tiny.yaml"), "--epochs", str(epochs), "--log.tensorboard", "false"]


def wait_for_step(run: Path, step: int, cluster: Cluster, seconds: float = 180) -> None:
    def reached() -> bool:
        with suppress(OSError, ValueError):
            return any(json.loads(line)["step"] >= step for line in (run / "metrics.jsonl").read_text().splitlines())
        return False

    try:
        cluster._wait_for(reached, f"step {step} of {run.name}", seconds)
    except pytest.fail.Exception as error:
        pytest.fail(f"{error}\n{output_of(run)}")


def finish(run: Path, job: str, cluster: Cluster, seconds: float = 600) -> Finished:
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "gone")
    cluster._wait_for(lambda: cluster.state(job) in ended, f"end of job {job} ({output_of(run)})", seconds)
    return Finished(0 if cluster.state(job) == "COMPLETED" else 1, output_of(run), run)


def output_of(run: Path) -> str:
    path = Path(f"{run}.slurm.out")
    return path.read_text() if path.exists() else "no output"


def test_signalled_requeued_and_bereft_of_a_node_it_ends_as_if_undisturbed(cluster, tmp_path, record_property):
    flags = settings(tmp_path)
    whole_run, run = tmp_path / "whole", tmp_path / "disturbed"
    whole = finish(whole_run, cluster.submit(whole_run, *flags), cluster)
    assert whole.code == 0, whole.output
    assert whole.status["status"] == "done"

    job = cluster.submit(run, *flags)
    wait_for_step(run, 30, cluster)
    cluster.ask("scancel", "--signal=TERM", job)  # to the steps, as --signal=TERM@300 sends it
    wait_for_requeue = "run is requeue"
    cluster._wait_for(lambda: wait_for_requeue in output_of(run), "requeue after the signal", 120)
    saved = json.loads((run / "status.json").read_text())
    wait_for_step(run, saved["step"] + 5, cluster, 300)
    cluster.lose_node("n2", run)
    cluster.start_node("n2")
    finished = finish(run, job, cluster)
    assert finished.status["status"] == "done", finished.output
    assert finished.output.count("resumed from") == 2, "after the signal, and after the lost node"
    same_result(finished, whole)
    record_property("samples_lost", 0)
    print(finished.output)


def test_job_with_sharded_heads_goes_on_with_the_node_that_is_left(cluster, tmp_path, record_property):
    """Four ranks, then two: each holds twice as many classes, of the same heads."""
    flags = [*settings(tmp_path, epochs=15), "--heads.shard", "class"]
    run = tmp_path / "sharded"
    job = cluster.submit(run, *flags, nodes="1-2", RANKS_PER_NODE="2")
    wait_for_step(run, 60, cluster, 300)
    cluster.lose_node("n2", run)
    finished = finish(run, job, cluster)
    assert finished.status["status"] == "done", finished.output
    assert finished.output.count("resumed from") == 1
    ranks = [row["world_size"] for row in manifests(run)]
    assert ranks[-1] == 2, ranks
    for name, table in finished.ledgers.items():
        counts = table["count"].to_pylist()
        assert max(counts) == 1, name
        assert sum(counts) == (22 * 64 if "running" in name else len(counts)), "the last, partial batch is dropped"
    record_property("samples_lost", 0)
    print(finished.output)


def manifests(run: Path) -> list[dict]:
    """Return the manifests of a run's checkpoints, oldest first."""
    return [json.loads(path.read_text()) for path in sorted(run.glob("checkpoints/step=*/manifest.json"))]
