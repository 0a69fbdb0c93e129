"""Files decoded strictly in processes of their own: verdicts in order, whatever a decoder does to its process."""

import pytest
from dying_decoder import dies_at_seven, never_ends_at_seven
from image_corpus import JPEG, CorpusFile, Outcome, write_corpus

from rlpheads.loaders.sources.image_folder import scan_splits
from rlpheads.loaders.sources.strict_decoding import examine_split


@pytest.mark.long
def test_a_file_that_ends_the_decoders_process_is_found_and_the_others_too(tmp_path):
    write_corpus(tmp_path, tuple(CorpusFile(f"{number:03d}.jpg", JPEG, Outcome.READ) for number in range(40)))
    manifest = scan_splits(tmp_path)[0]
    verdicts = [verdict for some in examine_split(manifest, 0, 1, dies_at_seven) for verdict in some]
    assert len(verdicts) == 43
    assert [index for index, verdict in enumerate(verdicts) if verdict] == [3 + 7]
    assert verdicts[10] == ("unreadable", "it ends the process of the decoder")


@pytest.mark.long
@pytest.mark.wrong("file")
def test_a_file_that_is_not_decoded_in_time_is_found_and_the_others_too(tmp_path):
    write_corpus(tmp_path, tuple(CorpusFile(f"{number:03d}.jpg", JPEG, Outcome.READ) for number in range(5, 9)))
    manifest = scan_splits(tmp_path)[0]
    some_seconds = 0.5  # an import of the decoder may take longer, and is no time of a file
    verdicts = [v for some in examine_split(manifest, 0, 1, never_ends_at_seven, some_seconds) for v in some]
    assert verdicts == [None] * 5 + [("unreadable", f"it is not decoded within {some_seconds} seconds"), None]
