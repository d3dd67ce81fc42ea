"""Emulators of Google's and Azure's stores on the loopback, which the environment tells of as of the real ones."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.serving import free_port

BUCKET = "bucket"
# Of every Azurite: public, and a key of nothing.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def google(environment: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket of gcp-storage-emulator."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install '.[gcs]'")
    server_of = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    server = server_of.create_server("127.0.0.1", free_port(), in_memory=True, default_bucket=BUCKET)
    server.start()
    host, port = server._api._httpd.server_address
    environment.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
    environment.setenv("FSSPEC_GCS_TOKEN", "anon")
    environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google itself of what kind a bucket is
    try:
        yield f"gs://{BUCKET}"
    finally:
        server.stop()


@contextmanager
def azure(environment: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty container of Azurite."""
    pytest.importorskip("adlfs", reason="adlfs is not installed: pip install '.[azure]'")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed: npm install --global azurite")
    port = free_port()
    flags = (
        "--inMemoryPersistence",
        "--blobPort",
        str(port),
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--silent",
    )
    server = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
    account = f"AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};BlobEndpoint={endpoint};"
    environment.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{account}")
    try:
        _wait_for(port)
        from azure.storage.blob import BlobServiceClient

        connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
        BlobServiceClient.from_connection_string(connection).create_container(BUCKET)
        yield f"az://{BUCKET}"
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
