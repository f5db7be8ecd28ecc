"""Looking at history: log, show, status, refs, diff, sql, and the names of versions."""

from __future__ import annotations

import pytest

from mlc.tests.cli.running import ok, run_cli

COMMIT_KEYS = {
    "id", "short", "branch", "parents", "snapshot", "op", "message", "author", "time", "metrics", "verdict", "delta", "artifacts", "check",
}  # fmt: skip


def test_a_commit_object_has_the_keys_that_scripts_rely_on(work):
    commit = ok("show", "main")["commit"]
    assert set(commit) >= COMMIT_KEYS
    assert commit["id"] == work.second
    assert commit["short"] == work.second[:12]
    assert commit["branch"] == "main"
    assert commit["parents"] == [work.first]
    assert set(commit["op"]) == {"name", "version", "params"}
    assert commit["op"]["params"]["data"]
    assert commit["verdict"]["outcome"] == "accepted"
    assert set(commit["delta"]) == {"tensors_changed", "tensors_total", "bytes_logical", "bytes_stored", "codecs"}
    assert sum(commit["delta"]["codecs"].values()) == commit["delta"]["tensors_changed"]
    assert commit["metrics"]["facts"].keys() == {"accuracy", "logprob"}


def test_the_log_is_newest_first_and_the_same_object_as_show(work):
    commits = ok("log")["commits"]
    assert [commit["id"] for commit in commits] == [work.second, work.first]
    assert commits[0] == ok("show", work.second)["commit"]


def test_the_log_takes_a_number_an_operation_and_a_date(work):
    assert [c["id"] for c in ok("log", "-n", "1")["commits"]] == [work.second]
    assert [c["id"] for c in ok("log", "--op", "import")["commits"]] == [work.first]
    assert ok("log", "--since", "2999")["commits"] == []
    assert {c["id"] for c in ok("log", "--all")["commits"]} == {work.first, work.second, work.refused}


def test_the_log_shows_id_names_operation_message_and_metrics_on_one_line(work):
    run_cli("tag", "v1", "HEAD~1")
    newest, oldest = run_cli("log", "--metrics", "facts").out.splitlines()
    assert newest.startswith(f"{work.second[:12]}  update  (HEAD -> main)  second  ")
    assert " facts " in newest
    assert f"{work.first[:12]}  import  (v1)  first  " in oldest


def test_the_graph_draws_a_lane_for_the_refused_candidate(work):
    lines = run_cli("log", "--graph", "--all").out.splitlines()
    assert any(line.startswith(("✗", "x")) and work.refused[:12] in line for line in lines)
    assert any("─╯" in line or "-'" in line for line in lines)
    assert sum(work.second[:12] in line for line in lines) == 1


def test_a_metric_without_a_suite_is_a_usage_error(work):
    answer = run_cli("log", "--metrics", "nonsense", "--json")
    assert answer.code == 2
    assert "suite.metric" in answer.error["hint"]


def test_show_lists_tensors_with_their_digests(work):
    tensors = ok("show", "--tensors")["tensors"]
    assert set(tensors[0]) == {"name", "dtype", "shape", "digest"}
    assert "model.embed_tokens.weight" in {tensor["name"] for tensor in tensors}
    page = run_cli("show", "HEAD~1", "--tensors").out
    assert "model.embed_tokens.weight" in page
    assert "64x16" in page


def test_show_explains_the_verdict_of_a_refused_candidate(work):
    page = run_cli("show", work.refused).out
    assert "✗ frozen: " in page
    assert "Refused" in page


@pytest.mark.parametrize("verb", [["show"], ["log"], ["diff", "main"], ["export"], ["rollback"], ["revert"], ["eval"], ["tag", "v9"]])
def test_an_unknown_rev_is_exit_3_with_a_hint_and_no_traceback(work, verb):
    rev = ["mian", "out"] if verb == ["export"] else ["mian"]
    answer = run_cli(*verb, *rev, "--json")
    assert (answer.code, answer.error["kind"]) == (3, "RefNotFound")
    assert "main" in answer.error["hint"]
    assert answer.out == ""


def test_status_says_where_we_are(work):
    status = ok("status")
    assert status["registry"] == str(work.root)
    assert status["head"] == "main"
    assert status["commit"]["id"] == work.second
    assert status["commit"]["op"] == "update"
    assert status["runs"] == []
    assert work.second[:12] in run_cli("status").out


def test_status_and_refs_are_right_when_the_mirror_is_damaged(work):
    ok("tag", "v1")
    (work.root / ".mlc" / "refs" / "tags" / "v1").unlink()
    assert ok("refs")["tags"] == {"v1": work.second}
    assert ok("status")["tags"] == 1


def test_refs_has_head_branches_tags_and_aliases(work):
    ok("tag", "v1", "HEAD~1")
    ok("alias", "@champion")
    ok("branch", "trial", "main~1")
    assert ok("refs") == {
        "head": "main",
        "branches": {"main": work.second, "trial": work.first},
        "tags": {"v1": work.first},
        "aliases": {"champion": work.second},
    }
    assert "@champion" in run_cli("refs").out


def test_names_are_set_moved_removed_and_taken_back(work):
    assert ok("branch", "trial", "main~1")["moved"] == [{"name": "heads/trial", "old": None, "new": work.first}]
    taken = run_cli("branch", "trial", "main", "--json")
    assert (taken.code, taken.error["kind"]) == (9, "RefMoved")
    assert ok("branch", "trial", "main", "--force")["moved"][0]["new"] == work.second
    assert ok("undo")["moved"] == [{"name": "heads/trial", "old": work.second, "new": work.first}]
    assert ok("redo")["moved"][0]["new"] == work.second
    assert ok("branch", "--delete", "trial")["moved"][0]["new"] is None
    assert ok("branch") == {"branches": {"main": work.second}, "head": "main"}


def test_no_name_may_point_at_a_refused_candidate(work):
    for verb in ("branch", "tag", "alias"):
        answer = run_cli(verb, "nice", work.refused, "--json")
        assert answer.code == 4
        assert "mlc accept" in answer.error["hint"]


def test_a_protected_alias_asks_and_without_a_terminal_wants_yes(work):
    settings = work.root / "mlc.toml"
    settings.write_text(settings.read_text().replace("# protected", "protected"))
    assert run_cli("alias", "champion", "main~1", "--json").code == 2
    assert ok("alias", "champion", "main~1", "--yes")["moved"][0]["new"] == work.first


def test_a_bad_name_is_a_usage_error(work):
    answer = run_cli("branch", "Bad Name", "--json")
    assert answer.code == 2
    assert answer.error["hint"]


def test_switch_changes_what_head_means_and_can_start_a_branch(work):
    assert ok("switch", "--create", "trial", "main~1") == {"head": "trial"}
    assert ok("status")["commit"]["id"] == work.first
    assert ok("switch", "main") == {"head": "main"}
    assert run_cli("switch", "nowhere", "--json").code == 3


def test_sql_answers_with_columns_and_rows(work):
    answer = ok("sql", "select op, count(*) as n from commits group by op order by op")
    assert answer == {"columns": ["op", "n"], "rows": [["import", 1], ["update", 2]]}
    assert "update" in run_cli("sql", "select op from commits").out


@pytest.mark.parametrize("query", ["drop table commits", "select nonsense", "select 1; select 2", "copy commits to 'x.csv'"])
def test_sql_that_is_wrong_or_would_write_is_a_usage_error(work, query):
    answer = run_cli("sql", query, "--json")
    assert answer.code == 2
    assert answer.out == ""


def test_long_output_is_plain_aligned_lines(work):
    answer = run_cli("sql", "select range as n, 'x' || range as word from range(1500)")
    lines = answer.out.splitlines()
    assert lines[0].split() == ["n", "word"]
    assert lines[1500].split() == ["1499", "x1499"]
