"""A job that gets nowhere is ended, and of two starts of one run only the newer one saves."""

import json

from parallel.launch import SlurmJob
from trainer.signals import EXIT_STOPPED
from trainer.starts import FILE_NAME, Starts, exit_code


def job(number, note=None):
    return SlurmJob(id=str(number), end_time=None, stop_note=note)


def test_a_job_may_start_again_from_the_same_step_so_often_and_not_oftener(tmp_path):
    note = tmp_path / "note"
    told = [Starts(tmp_path, job(7, note)).begin(40, max_restarts=2) for _ in range(4)]
    assert told[:3] == [None] * 3
    assert told[3].startswith("job 7 was started 3 times from step 40 and never came to a checkpoint")
    assert Starts(tmp_path, job(7, note)).begin(50, max_restarts=2) is None, "it did get somewhere"
    assert Starts(tmp_path, job(8, note)).begin(40, max_restarts=2) is None, "another job was submitted by somebody"
    assert Starts(tmp_path, job(7)).begin(40, max_restarts=2) is None, "somebody works in an allocation by hand"
    assert [Starts(tmp_path, None).begin(40, max_restarts=0) for _ in range(3)] == [None] * 3


def test_an_older_start_is_told_who_took_over(tmp_path):
    first, second, third = Starts(tmp_path, job(7)), Starts(tmp_path, job(8)), Starts(tmp_path, None)
    first.begin(0, max_restarts=3)
    assert first.taken_over() is None
    second.begin(0, max_restarts=3)
    assert "was started once more, by job 8" in first.taken_over()
    assert second.taken_over() is None
    third.begin(0, max_restarts=3)
    assert "by another process" in second.taken_over()


def test_a_torn_line_is_no_start(tmp_path):
    starts = Starts(tmp_path, job(7))
    starts.begin(0, max_restarts=3)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('\n{"start": "ab')
    assert starts.taken_over() is None
    assert Starts(tmp_path, job(8)).begin(0, max_restarts=3) is None
    assert "by job 8" in starts.taken_over()


def test_the_jobs_script_is_told_of_a_stop_where_it_asked(tmp_path, monkeypatch):
    note = tmp_path / "7.stopped"
    assert Starts(tmp_path, job(7, note)).stopped("the time limit") is None
    assert note.read_text() == "the time limit\n"
    for name in ("SLURM_JOB_ID", "TESSERA_STOP_NOTE"):
        monkeypatch.delenv(name, raising=False)
    assert [exit_code(code) for code in (0, 1, EXIT_STOPPED)] == [0, 1, EXIT_STOPPED]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert exit_code(EXIT_STOPPED) == EXIT_STOPPED, "nobody was told"
    monkeypatch.setenv("TESSERA_STOP_NOTE", str(note))
    assert [exit_code(code) for code in (0, 1, EXIT_STOPPED)] == [0, 1, 0]
    assert Starts(tmp_path, job(7)).stopped("x") is None and Starts(tmp_path, None).stopped("x") is None
    assert "cannot be written" in Starts(tmp_path, job(7, tmp_path / "gone/7")).stopped("x")


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in Starts(tmp_path / "file", job(7)).begin(0, max_restarts=3)
    whole = Starts(tmp_path / "run", job(7))
    assert whole.begin(0, max_restarts=3) is None
    assert set(json.loads((tmp_path / "run" / FILE_NAME).read_text())) == {"start", "job", "step", "time"}
