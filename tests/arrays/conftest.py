"""What tests of array jobs share: a small Dask cluster."""

import pytest


@pytest.fixture(scope="module")
def cluster():
    """Two processes of one thread each."""
    # Loaded by those tests alone that ask for one.
    from dask import config
    from distributed import Client, LocalCluster

    with (
        # A scheduler keeps so many of its messages, vectors in them: here it is in the process whose memory is measured.
        config.set({"distributed.admin.low-level-log-length": 5}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def address(cluster):
    """Where its scheduler is."""
    return cluster.scheduler.address
