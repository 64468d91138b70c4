"""What tests of array jobs share: a small Dask cluster."""

import pytest


@pytest.fixture(scope="module")
def cluster():
    """Two processes of one thread each."""
    # Loaded by those tests alone that ask for one.
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made, Client(made) as client:
        yield client


@pytest.fixture(scope="module")
def address(cluster):
    """Where its scheduler is."""
    return cluster.scheduler.address
