from data.problems import Problem, Problems


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
