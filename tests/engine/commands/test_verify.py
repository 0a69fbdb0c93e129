"""`rlpheads verify` over real files: what it finds, how it goes on, and that runs obey it."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from image_corpus import CORPUS, JPEG, CorpusFile, Outcome, write_corpus

from rlpheads.engine.cli import main
from rlpheads.engine.commands import verify_tree
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.sources import open_sources
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import open_dataset
from rlpheads.loaders.sources.image_folder import scan_splits
from rlpheads.loaders.sources.strict_decoding import examine_split
from rlpheads.loaders.sources.subset import take_subset
from rlpheads.loaders.sources.verification import Verification

pytestmark = pytest.mark.long


def verify(root: Path, *flags: str) -> int:
    return main(["verify", "--data.root", str(root), "--workers", "1", *flags])


@pytest.fixture(scope="module")
def verified(tmp_path_factory) -> tuple[Path, dict[int, CorpusFile]]:
    """The corpus, decoded once: its damaged files are the only ones that are not fine."""
    root = tmp_path_factory.mktemp("verified")
    files = write_corpus(root)
    assert verify(root) == 1
    return root, files


def test_every_file_that_is_not_whole_is_found_and_no_other(verified, capfd):
    root, files = verified
    found = Verification.read(root / ".rlpheads" / "train.json")
    expected = {index for index, file in files.items() if file.outcome is not Outcome.READ}
    assert found.complaints.keys() == expected
    refused = {index for index, file in files.items() if file.outcome is Outcome.REFUSED}
    assert refused <= {index for index, complaint in found.complaints.items() if complaint.status == "unreadable"}
    assert {complaint.name for complaint in found.complaints.values()} == {f"odd/{files[i].name}" for i in expected}
    damaged = {files[index].name for index, complaint in found.complaints.items() if complaint.status == "damaged"}
    assert {"half_with_an_end.jpg", "flipped_bits.jpg", "zeros_inside.jpg", "claims_more_rows.jpg"} <= damaged
    assert Verification.read(root / ".rlpheads" / "val.json").complaints == {}
    assert verify(root) == 1, "it says the same again, from what is written"
    assert "17 unreadable, 5 damaged" in capfd.readouterr().out
    assert not list((root / ".rlpheads").glob("*unfinished*"))


def test_loaders_leave_out_what_was_found_without_reading_it(verified):
    root, files = verified
    source, _ = open_dataset("imagefolder", root, seed=0)
    order = Order(source.manifest.num_samples, 8, shuffle=False, partial="pad")
    loader = make_loader("torch", source, order, CropSpec(16), train=False, options=LoaderOptions(on_error="skip"))
    skipped = {error.index: error for batch in loader for error in batch.skipped}
    assert skipped.keys() == {index for index, file in files.items() if file.outcome is not Outcome.READ}
    assert all(error.reason.endswith("(rlpheads verify)") for error in skipped.values())
    assert all(error.path == str(source.manifest.path(index)) for index, error in skipped.items())
    with pytest.raises(DatasetError, match=r"^22 of 47 images of split 'train' are known to be unreadable: image 4 "):
        make_loader("torch", source, order, CropSpec(16), train=False)


def test_a_run_that_may_not_skip_refuses_to_start_and_names_the_first(verified, tiny):
    root, _ = verified
    data = replace(tiny.data, dataset="imagefolder", root=str(root))
    with pytest.raises(ConfigError, match=r"22 of 47 .*claims_4_gigapixels.jpg.*and 17 more.*data.on_error skip"):
        open_sources(replace(tiny, data=data))
    sources = open_sources(replace(tiny, batch_size=8, data=replace(data, on_error="skip")))
    assert len(sources.train.manifest.unreadable) == 22


def test_findings_follow_their_samples_through_splits_subsets_and_copies(tmp_path):
    files = tuple(CorpusFile(f"{number}.jpg", JPEG, Outcome.READ) for number in range(8))
    write_corpus(tmp_path, (*files, CorpusFile("bad.jpg", b"damaged", Outcome.REFUSED)))
    for path in (tmp_path / "val").glob("*/*"):
        path.unlink()
    for folder in ("val/fine", "val/odd", "val"):
        (tmp_path / folder).rmdir()
    assert verify(tmp_path) == 1
    for seed in range(3):
        splits = open_dataset("imagefolder", tmp_path, val_fraction=0.3, seed=seed)
        subset = take_subset(splits[0], 0.9, None, seed=0)
        planted = insert_canaries(splits[0], CanarySpec(repeated=splits[0].manifest.num_samples, repeats=(2,)), seed=0)
        for manifest in (*(split.manifest for split in splits), subset.manifest, planted.manifest):
            bad = {i for i in range(manifest.num_samples) if manifest.name(i).startswith("odd/bad.jpg")}
            assert manifest.unreadable.keys() == bad
        assert sum(len(split.manifest.unreadable) for split in splits) == 1


def test_findings_of_other_files_are_refused_with_both_fingerprints(tmp_path):
    write_corpus(tmp_path, CORPUS[:3])
    assert verify(tmp_path) == 0
    (tmp_path / "train" / "odd" / "new.jpg").write_bytes(JPEG)
    there = Verification.read(tmp_path / ".rlpheads" / "train.json").fingerprint
    here = scan_splits(tmp_path)[0].fingerprint
    with pytest.raises(DatasetError, match=rf"is of other files .*{there}, theirs is {here}; run rlpheads verify"):
        open_dataset("imagefolder", tmp_path, seed=0)
    assert verify(tmp_path) == 0
    assert open_dataset("imagefolder", tmp_path, seed=0)[0].manifest.unreadable == {}


def test_an_interrupted_verification_goes_on(tmp_path, monkeypatch, capfd):
    """Interrupted after the first task; what was found till then is not looked at again, and loaders ignore it."""
    files = tuple(
        CorpusFile(f"{number:03d}.jpg", b"bad" if number == 5 else JPEG, Outcome.READ) for number in range(70)
    )
    write_corpus(tmp_path, files)

    def interrupted(*arguments):
        yield next(examine_split(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_tree, "examine_split", interrupted)
    assert verify(tmp_path) == 130
    assert "goes on where it was" in capfd.readouterr().err
    assert open_dataset("imagefolder", tmp_path, seed=0)[0].manifest.unreadable == {}
    unfinished = tmp_path / ".rlpheads" / "train.unfinished.json"
    assert Verification.read(unfinished).num_checked == 32
    began = []

    def counting(manifest, first, workers):
        began.append(first)
        return examine_split(manifest, first, workers)

    monkeypatch.setattr(verify_tree, "examine_split", counting)
    assert verify(tmp_path) == 1
    assert began == [32, 0]
    assert Verification.read(tmp_path / ".rlpheads" / "train.json").complaints.keys() == {3 + 5}
    assert not unfinished.exists()


def test_an_interrupted_second_verification_goes_on_without_the_flag(tmp_path, monkeypatch, capfd):
    """A file was changed in place: what was found before stands until all is looked at again, and no longer."""
    write_corpus(tmp_path, tuple(CorpusFile(f"{number:03d}.jpg", JPEG, Outcome.READ) for number in range(70)))
    assert verify(tmp_path) == 0
    (tmp_path / "train" / "odd" / "005.jpg").write_bytes(bytes(len(JPEG)))

    def interrupted(*arguments):
        yield next(examine_split(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verify_tree, "examine_split", interrupted)
        assert verify(tmp_path, "--again") == 130
    assert "the same command, without --again, goes on where it was" in capfd.readouterr().err
    assert Verification.read(tmp_path / ".rlpheads" / "train.json").complaints == {}
    assert verify(tmp_path) == 1
    assert Verification.read(tmp_path / ".rlpheads" / "train.json").complaints.keys() == {3 + 5}
    assert verify(tmp_path) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "cannot be read"),
        ("half of {", "cannot be read"),
        ('{"version": 99}', "another version"),
        (None, "tells of 4 of 6 files only"),
    ],
)
def test_a_damaged_file_of_findings_is_refused(tmp_path, content, message):
    write_corpus(tmp_path, CORPUS[:3])
    if content is None:
        content = replace(Verification(scan_splits(tmp_path)[0].fingerprint, 6), num_checked=4).to_json()
    (tmp_path / ".rlpheads").mkdir()
    (tmp_path / ".rlpheads" / "train.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset("imagefolder", tmp_path, seed=0)


def test_findings_can_lie_elsewhere_and_must_be_there_when_named(tmp_path):
    root, out = tmp_path / "tree", tmp_path / "found"
    write_corpus(root, (*CORPUS[:2], CorpusFile("zero.jpg", b"", Outcome.REFUSED)))
    with pytest.raises(DatasetError, match=f"does not exist: rlpheads verify --data.root {root} --out {out} writes it"):
        open_dataset("imagefolder", root, seed=0, verified=out)
    assert verify(root, "--out", str(out)) == 1
    assert not (root / ".rlpheads").exists()
    assert open_dataset("imagefolder", root, seed=0, verified=out)[0].manifest.unreadable.keys() == {5}
    content = json.loads((out / "train.json").read_text())
    assert content["complaints"]["5"] == {"status": "unreadable", "name": "odd/zero.jpg", "reason": "the file is empty"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [([], "does not exist"), (["--workers", "0"], "--workers is 0; it must be at least 1")],
)
def test_what_cannot_be_verified_is_an_error(tmp_path, capsys, flags, message):
    assert main(["verify", "--data.root", str(tmp_path / "none"), *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.timeout(120)
@pytest.mark.wrong("tree")
def test_what_the_scan_passes_over_is_said_and_never_opened(tmp_path, capfd):
    write_corpus(tmp_path, (CorpusFile("a.jpg", JPEG, Outcome.READ),))
    os.mkfifo(tmp_path / "train" / "odd" / "pipe.jpg")
    (tmp_path / "train" / "odd" / "b.heic").write_bytes(JPEG)
    assert verify(tmp_path) == 0
    said = capfd.readouterr().out
    assert "train: 2 passed over: " in said
    assert "1 .heic" in said
    assert "odd/pipe.jpg" in said
