import os
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def data():
    """Real data beside the repository; tests that need it are skipped without."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data")
    return DATA


@pytest.fixture(scope="session")
def s3_server():
    """An S3 stand-in in this process; its address is in the environment, as a user's would be."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    changes = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    yield changes
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture
def s3_root(s3_server, request):
    """A new bucket."""
    import boto3

    bucket = request.node.name.lower().replace("_", "-").replace("[", "-").rstrip("]")[:60]
    client = boto3.client("s3", endpoint_url=s3_server["AWS_ENDPOINT_URL"], region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/nightly"
    client.close()
