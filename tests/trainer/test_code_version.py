"""The commit of a checkout and whether files differ from it."""

import subprocess

from trainer.code_version import code_version


def git(folder, *words):
    own = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", str(folder), *own, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_is_named_by_its_commit_and_what_was_changed_since(tmp_path):
    assert code_version(tmp_path) == {"code.commit": "unknown"}
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version(tmp_path) == {"code.commit": commit, "code.changed": False}
    (tmp_path / "a.py").write_text("2")
    assert code_version(tmp_path) == {"code.commit": commit, "code.changed": True}
