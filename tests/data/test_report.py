from data.report import ClipReport, Problem, Problems


def filled(count):
    report = ClipReport(source_clips=3, windows=5, images=1, frames=60, frames_cropped=4)
    for number in range(count):
        report.skip(shard="a.tar", key=f"k{number}", reason=f"too short: {number} frames")
    report.skip(shard="b.tar", key="", reason="broken tar: cut off")
    return report


def test_reasons_are_counted_by_kind():
    assert filled(4).reasons() == {"too short": 4, "broken tar": 1}


def test_the_file_holds_every_skipped_clip():
    described = filled(40).to_json()
    assert described["skipped_clips"] == len(described["skipped"]) == 41
    assert described["skipped"][0] == {"shard": "a.tar", "key": "k0", "reason": "too short: 0 frames"}
    assert described["frames_cropped"] == 4


def test_the_summary_names_the_first_and_counts_the_rest():
    lines = filled(40).lines(limit=2)
    assert lines[0] == "clips    3 kept as 5 windows (1 of them images), 60 frames; 4 frames cropped at clip ends"
    assert lines[1:] == [
        "skipped  41",
        "  a.tar: k0: too short: 0 frames",
        "  a.tar: k1: too short: 1 frames",
        "  ... and 39 more, all in the report file",
    ]
    assert filled(0).lines()[-1] == "  b.tar: (rest of the shard): broken tar: cut off"


def test_a_problem_names_shard_and_key():
    assert str(Problem(shard="a.tar", key="k", what="broken")) == "a.tar: k: broken"
    assert str(Problem(shard="a.tar", what="empty file")) == "a.tar: empty file"


def test_names_cannot_steer_a_terminal():
    problem = Problem(shard="a.tar", key="k\x1b[2J\n\udcff", what="brøken")
    assert str(problem) == "a.tar: k\\x1b[2J\\n\\udcff: brøken"


def test_all_are_counted_and_the_first_are_told():
    problems = Problems(limit=3)
    for number in range(5):
        problems.add("a.tar", f"k{number}", "broken")
    problems.extend([Problem(shard="b.tar", what="empty")], count=7)
    assert problems.count == 12
    assert len(problems.found) == 3
    assert problems.lines(2) == ["a.tar: k0: broken", "a.tar: k1: broken", "... and 10 more"]
    assert problems.lines(9)[-1] == "... and 9 more"
    assert Problems().lines(2) == []
