"""A store that is asked to slow down, answers with errors, or breaks off: nothing is lost, and no secret is told."""

import logging
import os

import pytest
from s3fs import S3FileSystem

from pipeline.dataset.reader import BlockReader
from pipeline.generation.generate import generate
from pipeline.generation.verify import verify
from pipeline.storage.store import open_store
from tests.support.plans import config
from tests.support.unwell_store import Faults, listing, unwell

pytestmark = pytest.mark.cluster


@pytest.fixture
def _new_connections(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that are opened by the test ask the endpoint that it sets, and wait little between attempts."""
    monkeypatch.setattr("pipeline.storage.store.PAUSE_SECONDS", 0.0)
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("_new_connections")
def test_nothing_is_lost_on_a_store_that_is_unwell(
    s3_server: str,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = generate(config(f"memory://{s3.removeprefix('s3://')}"))
    faults = Faults(every=4)
    caplog.set_level(logging.INFO)
    with unwell(s3_server, faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        made = generate(config(f"{s3}/data"))
        assert made.sha256 == here.sha256
        assert generate(config(f"{s3}/data")).sha256 == here.sha256
        result = verify(open_store(f"{s3}/data"))
        assert (result.faults, result.digest) == ([], here.sha256)
        reader = BlockReader(made)
        indices = [index for block in range(made.blocks.num_rows) for index in reader.read(block).index.tolist()]
        reader.close()
    assert indices == list(range(20))
    assert min(faults.done[kind] for kind in ("slow down", "an error in its body", "truncated")) >= 2, faults.done
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    assert verify(open_store(f"{s3}/data")).faults == []
    told = caplog.text + "".join(capsys.readouterr())
    assert "20/20" in told
    for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in told


@pytest.mark.usefixtures("_new_connections")
def test_a_listing_of_a_hundred_thousand_keys_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with listing(100_000) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        sizes = open_store("s3://bucket/set").sizes()
    S3FileSystem.clear_instance_cache()
    assert len(sizes) == 100_000
    assert sizes["shard-099999.tar"] == 99_999
