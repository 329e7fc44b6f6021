"""The starts of a run, a line each in its folder: a job that gets nowhere is ended, and only the newest start saves."""

import json
import time
import uuid
from pathlib import Path

from parallel.launch import SlurmJob
from trainer.signals import EXIT_STOPPED

FILE_NAME = "starts.jsonl"


class Starts:
    """What one rank keeps of it; every method returns what is wrong in one sentence, for all ranks to refuse together.

    A node that SLURM has lost may still compute: its job runs again elsewhere, and there are two starts of one run.
    """

    def __init__(self, folder: Path, job: SlurmJob | None) -> None:
        self._path, self._job, self._id = folder / FILE_NAME, job, uuid.uuid4().hex

    def begin(self, step: int, *, max_restarts: int) -> str | None:
        """Write this start down, unless its job was started too often from the step it starts from again."""
        job = None if self._job is None else self._job.id
        try:
            rows = self._rows()
            # In an allocation that somebody works in by hand, each start is wanted.
            is_counted = self._job is not None and self._job.stop_note is not None
            fruitless = sum(row["job"] == job and row["step"] == step for row in rows) if is_counted else 0
            if fruitless > max_restarts:
                return (
                    f"job {job} was started {fruitless} times from step {step} and never came to a checkpoint "
                    f"(run.max_restarts={max_restarts}): see {self._path.parent / 'log.txt'} and the job's log, then "
                    "submit it again"
                )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            row = {"start": self._id, "job": job, "step": step, "time": round(time.time(), 3)}
            with self._path.open("a", encoding="utf-8") as file:
                # The line before may be torn: a new one begins here, wherever that ended.
                file.write("\n" * (file.tell() > 0) + json.dumps(row))
        except OSError as error:
            return f"{self._path} cannot be written ({error.strerror}): repair the disk and start again"
        return None

    def taken_over(self) -> str | None:
        """Whether the run was started once more since."""
        try:
            newest = self._rows()[-1:]
        except OSError as error:
            return f"{self._path} cannot be read ({error.strerror}), so nothing was saved: repair the disk, start again"
        if newest and newest[0]["start"] != self._id:
            place = f"job {newest[0]['job']}" if newest[0]["job"] else "another process"
            return f"{self._path.parent} was started once more, by {place}, so this one ends and saves nothing"
        return None

    def stopped(self, reason: str) -> str | None:
        """Tell the job's script that everything is saved and the run has to go on."""
        if self._job is None or self._job.stop_note is None:
            return None
        try:
            self._job.stop_note.write_text(reason + "\n", encoding="utf-8")
        except OSError as error:
            return f"{self._job.stop_note} cannot be written ({error.strerror}), so the job does not requeue itself"
        return None

    def _rows(self) -> list[dict[str, str | int | None]]:
        """All starts; the torn line of a killed process is left out."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]


def exit_code(code: int) -> int:
    """Of a rank whose run ended so: 0 where the job's script was told of the stop, or srun would kill other nodes."""
    job = SlurmJob.from_environment()
    told = job is not None and job.stop_note is not None
    return 0 if code == EXIT_STOPPED and told else code
