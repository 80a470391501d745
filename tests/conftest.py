"""What several tests need: a run of the embedded target, and builds installed once."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kvgauge.builds.install import install
from kvgauge.target.embedded import EmbeddedTarget, Options
from scene import make_run

# Machines that run the tests are shared: how long an example took says nothing of the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture
def embedded(tmp_path):
    """Start an embedded target for a test; ended when the test is over."""
    started = []

    def start(test, *cells, **options):
        target = EmbeddedTarget(tmp_path / f"logs-{len(started)}", install, Options(**options))
        started.append(target)
        target.prepare(test)
        return target, target.start(make_run(test, *cells))

    yield start
    for target in started:
        target.stop()


@pytest.fixture(scope="session")
def samples_folder():
    return Path(__file__).parent / "samples"
