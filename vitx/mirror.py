"""Checkpoints in stores that Orbax cannot write: it writes them to a local folder, and they are copied from there.

orbax-checkpoint 0.12.8 (2026-11) writes arrays to local paths and to gs:// only: `tensorstore_utils` refuses others
("Checkpoint path should be absolute"), and `atomicity_defaults` would rename folders where no store has a rename. A
checkpoint here is complete when its `commit_success.txt` is there, which is copied last; Orbax itself does so on gs://.
"""

import concurrent.futures
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import jax

from vitx import storage
from vitx.errors import UserError

POLL_SECONDS = 0.05  # between looks at whether Orbax has finished a checkpoint


class Mirror:
    """Keeps a folder of checkpoints in a bucket in step with a local folder that Orbax writes.

    Attributes:
        local: the local folder, removed by `close`; it holds one checkpoint at a time.
    """

    def __init__(self, directory: PurePath):
        if jax.process_count() > 1:
            raise UserError(
                f"{directory}: with several processes, checkpoints can be written to gs:// or to a file system that "
                "all of them share; choose another --workdir"
            )
        self._directory = directory
        self.local = Path(tempfile.mkdtemp(prefix="vitx-checkpoints-"))
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._upload: concurrent.futures.Future | None = None
        self._cancelled = False

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints in the bucket, oldest first."""
        folders = sorted(int(name) for name in storage.names_in(self._directory) if name.isdecimal())
        return [step for step in folders if storage.exists(self._directory / str(step) / storage.COMMITTED)]

    def fetch(self, step: int) -> None:
        """Copies a checkpoint to the local folder, over any older copy: the bucket is the truth."""
        self.forget(step)
        storage.download_folder(self._directory / str(step), self.local / str(step))

    def forget(self, step: int) -> None:
        """Removes the local copy of a checkpoint."""
        shutil.rmtree(self.local / str(step), ignore_errors=True)

    def push(self, step: int, preserve: Callable[[Sequence[int]], Sequence[bool]]) -> None:
        """Starts to copy a checkpoint to the bucket, as soon as Orbax has written it.

        Args:
            step: step of the checkpoint.
            preserve: returns which of the steps in the bucket to keep, once this one is among them.
        """
        self._upload = self._pool.submit(self._copy, step, preserve)

    def wait(self) -> None:
        """Returns when everything pushed is in the bucket; raises what copying raised."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.result()

    def close(self) -> None:
        """Ends copying that waits for a checkpoint that will not come, and removes the local folder."""
        self._cancelled = True
        self._pool.shutdown()
        shutil.rmtree(self.local, ignore_errors=True)

    def _copy(self, step: int, preserve: Callable[[Sequence[int]], Sequence[bool]]) -> None:
        folder = self.local / str(step)
        while not folder.exists():  # Orbax renames it into place when it is complete
            if self._cancelled:
                return
            time.sleep(POLL_SECONDS)
        storage.upload_folder(folder, self._directory / str(step))
        self.forget(step)
        steps = self.steps()
        for old, kept in zip(steps, preserve(steps), strict=True):
            if not kept:
                storage.remove_folder(self._directory / str(old))
