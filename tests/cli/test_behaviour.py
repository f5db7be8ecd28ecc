"""`mlc drift` and `mlc log --matrix` through the program."""

from __future__ import annotations

import pytest

from mlc.tests.cli.running import ok, run_cli


def test_every_step_behind_a_version_is_compared_from_stored_answers(work):
    answer = ok("drift")
    assert answer["revs"] == [work.first, work.second]
    [step] = answer["steps"]
    assert (step["a"], step["b"], step["op"]) == (work.first, work.second, "update")
    assert step["suites"]
    for suite in step["suites"].values():
        assert 0 <= suite["mismatch"] <= 1
        assert 0 <= suite["p"] <= 1


def test_a_version_beside_itself_has_no_step_and_one_root_has_nothing_before_it(work):
    assert ok("drift", work.first, work.first)["steps"] == []
    answer = run_cli("drift", work.first)
    assert answer.code == 2
    assert "nothing before it" in answer.err


def test_the_matrix_has_a_row_per_measured_version_and_the_numbers_that_follow(work):
    plain = ok("log", "--matrix")
    assert [v["commit"] for v in plain["versions"]] == [work.first, work.second]
    assert len(plain["matrix"]) == 2
    assert {len(row) for row in plain["matrix"]} == {len(plain["suites"])}
    assert plain["summary"]["bwt"] is None
    suite = plain["suites"][0]
    known = ok("log", "--matrix", "--learned", f"{suite}={work.first}")
    assert known["summary"]["bwt"] == pytest.approx(known["matrix"][1][0] - known["matrix"][0][0], abs=1e-12)


@pytest.mark.parametrize(("word", "code"), [("nothing=main", 2), ("facts", 2), ("facts=nowhere", 3)])
def test_a_wrong_word_about_who_learned_what_gives_its_exit_code(work, word, code):
    answer = run_cli("log", "--matrix", "--learned", word)
    assert answer.code == code
    assert "Traceback" not in answer.err


def test_people_see_tables(work):
    assert "mismatch" in run_cli("drift").out
    assert "forgetting" in run_cli("log", "--matrix").out


def test_a_rule_may_bound_how_many_answers_change(work):
    rules = {"same-answers": "drift.mismatch_lower95", "one": "drift.nothing"}
    rule = "".join(f'[[rule]]\nid = "{name}"\nmetric = "{metric}"\nmax = 0.0\n' for name, metric in rules.items())
    (work.root / "policies" / "strict.toml").write_text(rule, encoding="utf-8")
    outcomes = {o["rule"]: o for o in run_cli("gate", work.second, "--against", work.first, "--json").json["verdict"]["rules"]}
    step = ok("drift", work.first, work.second)["steps"][0]["suites"]
    assert outcomes["same-answers"]["got"] == max(s["mismatch_lower95"] for s in step.values() if s["mismatch_lower95"] is not None)
    assert outcomes["one"]["outcome"] == "skipped"


def test_drift_on_a_suite_that_nothing_was_measured_on_is_an_error(work):
    answer = run_cli("drift", "main~1", "main", "--suite", "fatcs", "--json")
    assert (answer.code, answer.error["hint"]) == (3, "mlc eval REV --suite fatcs"), answer
