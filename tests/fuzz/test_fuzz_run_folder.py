"""Every file that a run leaves, mutated: resume, audit, canaries and studies end in an error of ours, or work."""

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutations import ODD_VALUES, mutate_bytes, mutate_value, run_cases
from small_runs import small_config
from strangers_files import make_manifest_agree

from rlpheads.engine.audits.audit_run import AuditOptions
from rlpheads.engine.cli import main
from rlpheads.engine.commands.study_plan import PlannedRun, Study
from rlpheads.engine.commands.study_report import collect_study, print_study
from rlpheads.engine.config.command_line import dump_config, parse_config
from rlpheads.engine.config.data import CanaryConfig
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.config.run import EvalConfig, LedgerConfig, LogConfig, RunConfig
from rlpheads.engine.model.plan import ModelPlan, plan_model
from rlpheads.engine.report.canaries_report import collect_report, print_report
from rlpheads.engine.report.console import open_console
from rlpheads.engine.report.summary import write_summary
from rlpheads.engine.runs.checkpoint import SEAL, CheckpointError, write_sealed_manifest
from rlpheads.engine.runs.folder import RunFolderError, claim
from rlpheads.engine.runs.log import RunLog
from rlpheads.engine.runs.opened_run import RunError, open_checkpoint
from rlpheads.engine.runs.sources import Sources, open_sources
from rlpheads.engine.training.start import settle_start
from rlpheads.memorization.records.canary_file import CanaryError
from rlpheads.memorization.records.ledger_file import LedgerError

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]
OURS = (ConfigError, CheckpointError, RunFolderError, RunError, LedgerError, CanaryError)
CASES = 200
"""Mutations of each file."""
SECONDS = 30.0
MOST_BYTES = 1 << 30
AUDIT = AuditOptions(draws=4, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of two epochs with canaries, every ledger, and an audit."""
    folder = tmp_path_factory.mktemp("runs")
    config = small_config(folder, "run", epochs=2)
    data = replace(config.data, canaries=CanaryConfig(mislabelled=12, repeated=6, repeats=[2, 4], near_duplicates=4))
    config = replace(config, data=data, ledger=LedgerConfig(every=1), eval=EvalConfig(clean_every=1))
    (folder / "settings.yaml").write_text(dump_config(config))
    assert main(["train", "--config", str(folder / "settings.yaml"), "--checkpoint.every", "1"]) == 0
    assert main(["audit", str(folder / "run"), "--draws", "4"]) == 0
    return folder / "run"


@functools.cache
def opened(settings: str) -> tuple[Sources, ModelPlan]:
    """Return images and plan of a run: both depend on its settings alone, and are those of nearly every case."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(settings)
        file.flush()
        config = parse_config(["--config", file.name])
    sources = open_sources(config)
    try:
        return sources, plan_model(config, len(sources.train.manifest.classes))
    except ValueError as error:  # as engine.checks does, before a run folder is claimed
        raise ConfigError(str(error)) from error


def resume(folder: Path) -> None:
    """What a start does before it trains: claims the folder, finds its checkpoint, and goes on with its record."""
    config = parse_config(
        ["--config", str(folder / "config.yaml"), f"--run.dir={folder.parent}", f"--run.name={folder.name}"]
    )
    claimed, lock = claim(config.run)
    with lock:
        sources, plan = opened(dump_config(replace(config, run=RunConfig())))
        start = settle_start(config, plan, sources, claimed)
        if start.point is not None:
            log = RunLog(claimed, LogConfig(tensorboard=False), (0, 1))
            log.open(start.point.position.epoch * 6, start.point.position.epoch, {}, start.point.record)
            write_summary(claimed, HeadsConfig())


def audit(folder: Path) -> None:
    open_checkpoint(folder).load_model()


def canaries(folder: Path) -> None:
    report = collect_report(folder, "running")
    report.to_json()
    print_report(report, open_console())


def study(folder: Path) -> None:
    """The report of a study of this one run."""
    config = replace(small_config(folder.parent, folder.name, epochs=2))
    planned = PlannedRun("only", 0, config, folder.parent / "settings.yaml", ())
    parts = {"config": (), "settings": {}, "arms": {"only": {}}, "seeds": (0,), "reference": "only", "audit": AUDIT}
    found = collect_study(Study(name="one", **parts), [planned])
    json.dumps(found)
    print_study(found, open_console())


def reseal(folder: Path) -> None:
    """Seal a manifest again, as who changed it on purpose would."""
    content = json.loads((folder / "manifest.json").read_text())
    write_sealed_manifest(folder, {key: value for key, value in content.items() if key != SEAL})


def change_json(path: Path, rng: random.Random) -> None:
    content = mutate_value(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(content))
    if path.name == "manifest.json" and isinstance(content, dict) and rng.random() < 0.8:
        reseal(path.parent)


def change_rows(path: Path, rng: random.Random) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = mutate_value(rows, rng)
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])))
    for saved in path.parent.glob("checkpoints/step=*"):  # as an older version, which kept no digests, left it
        content = json.loads((saved / "manifest.json").read_text())
        write_sealed_manifest(saved, {key: value for key, value in content.items() if key not in (SEAL, "record")})


def change_table(path: Path, rng: random.Random) -> None:
    """Change values of a Parquet file, its metadata, or both, and write it again whole."""
    table = pq.read_table(path)
    if rng.random() < 0.6:
        name = rng.choice(table.column_names)
        values = table.column(name).to_pylist()
        for _ in range(rng.randint(1, 3)):
            values[rng.randrange(len(values))] = rng.choice([*ODD_VALUES, *values])
        rng.random() < 0.3 and values.sort(key=str)
        try:
            column = pa.array(values, table.schema.field(name).type)
        except (pa.ArrowException, OverflowError, TypeError):
            column = pa.array([str(value) for value in values])
        table = table.set_column(table.column_names.index(name), name, column)
    if rng.random() < 0.6:
        metadata = {key: json.dumps(mutate_value(json.loads(text), rng)) for key, text in table.schema.metadata.items()}
        table = table.replace_schema_metadata(metadata)
    if rng.random() < 0.2:
        table = table.slice(0, rng.randrange(table.num_rows))
    pq.write_table(table, path)


def change_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))


READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    ".rlpheads-run": (resume,),
    "config.yaml": (resume, audit, study),
    "environment.json": (study,),
    "status.json": (resume,),
    "metrics.jsonl": (resume, study),
    "checkpoints/step=000000012/manifest.json": (resume, audit),
    "checkpoints/step=000000012/.metadata": (resume, audit),
    "canaries.parquet": (canaries,),
    "ledger/epoch=0000/running.parquet": (canaries,),
    "ledger/epoch=0001/running.parquet": (canaries,),
    "ledger/epoch=0001/clean.parquet": (resume,),
    "audit/step=000000012_least_squares.json": (study,),
}
"""The files of a run that something reads, and what reads them."""


def test_every_file_that_is_read_is_mutated(run):
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert READERS.keys() <= there, there
    for read in {reader for readers in READERS.values() for reader in readers}:
        read(run)


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_an_error_of_ours_or_is_read(run, tmp_path, name):
    def check(case: int) -> None:
        rng = random.Random(f"{name}{case}")
        folder = tmp_path / f"run{case}"
        shutil.copytree(run, folder)
        change = {".json": change_json, ".jsonl": change_rows, ".parquet": change_table}.get(
            Path(name).suffix, change_bytes
        )
        if rng.random() < 0.4:
            change = change_bytes
        change(folder / name, rng)
        if name.endswith(".metadata"):
            make_manifest_agree((folder / name).parent)
        try:
            for read in READERS[name]:
                try:
                    read(folder)
                except OURS as error:
                    assert "\n" not in str(error).strip(), "one line"
        finally:
            shutil.rmtree(folder)

    for read in READERS[name]:
        read(run)
    report = run_cases(check, range(CASES), seconds=SECONDS, per_process=50)
    assert not report.failures, f"{len(report.failures)} of {report.cases}: " + "\n".join(report.failures[:8])
    assert report.peak_bytes < MOST_BYTES
