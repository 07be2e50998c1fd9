"""What tests of weights share: a small ViViT as Hugging Face stores it."""

import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def vivit(tmp_path) -> Path:
    """A directory of a small ViViT that a test may change."""
    return Path(shutil.copytree(GOLDEN / "vivit", tmp_path / "vivit"))
