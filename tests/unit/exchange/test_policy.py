"""The rules: parsing, matching, and what happens when they are broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfilexchg.dom0.exchange.policy import FILE_MAX, FILES_MAX, Action, BadPolicy, Policy, Word, default_rules, load, parse
from qfilexchg.protocol.names import VmName

WORK, PERSONAL, BANK = map(VmName.parse, ("work", "personal", "bank"))
NEW_DISPOSABLE = None

names = st.sampled_from((WORK, PERSONAL, BANK))
targets = st.none() | names
actions = st.sampled_from([action.value for action in Action])
lines = st.builds("{} {} {}".format, names | st.just("*"), names | st.sampled_from(("*", "disposable")), actions)


def decide(text: str, source: VmName, target: VmName | None) -> Action:
    return Policy(parse(text, "test")).decide(source, target).action


@pytest.mark.parametrize(
    ("text", "source", "target", "action"),
    [
        ("work personal allow", WORK, PERSONAL, Action.ALLOW),
        ("work personal allow", PERSONAL, WORK, Action.DENY),
        ("work personal ask\nwork personal allow", WORK, PERSONAL, Action.ASK),
        ("* personal allow", BANK, PERSONAL, Action.ALLOW),
        ("work * allow", WORK, BANK, Action.ALLOW),
        ("work * allow", WORK, NEW_DISPOSABLE, Action.DENY),
        ("* * allow", WORK, NEW_DISPOSABLE, Action.DENY),
        ("work disposable allow", WORK, NEW_DISPOSABLE, Action.ALLOW),
        ("work disposable allow", WORK, PERSONAL, Action.DENY),
        ("work disposable allow", WORK, VmName.parse("disposable"), Action.DENY),
        ("* * allow", WORK, VmName.parse("disposable"), Action.ALLOW),
        ("bank * deny\n* * allow", BANK, WORK, Action.DENY),
        ("Work * allow", WORK, BANK, Action.DENY),
        ("", WORK, PERSONAL, Action.DENY),
    ],
)
def test_the_first_rule_that_matches_decides(text: str, source: VmName, target: VmName | None, action: Action) -> None:
    assert decide(text, source, target) is action


def test_blanks_comments_and_empty_lines_mean_nothing() -> None:
    (rule,) = parse("# größer\n\n \t work\t personal  allow # since May\r\n#x y allow", "a.policy")
    assert (rule.source, rule.target, rule.action, rule.line) == (WORK, PERSONAL, Action.ALLOW, 3)
    assert str(rule) == "work personal allow (a.policy:3)"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("work personal", 1, "three words"),
        ("work personal allow now", 1, "not 4"),
        ("# fine\nwork personal permit", 2, "'permit'"),
        ("work personal ALLOW", 1, "'ALLOW'"),
        ("wörk personal allow", 1, "VM name"),
        ("-work personal allow", 1, "VM name"),
        ("work per*al allow", 1, "VM name"),
        ("disposable work allow", 1, "disposable is a word for a TARGET"),
        ("work personal \x1b[2J", 1, r"'\\x1b\[2J'"),
    ],
)
def test_a_line_that_is_no_rule_is_named(text: str, line: int, why: str) -> None:
    with pytest.raises(BadPolicy, match=why) as caught:
        parse(text, "a.policy")
    assert str(caught.value).startswith(f"a.policy:{line}: ")


def test_the_shipped_rules_allow_disposables_and_ask_for_the_rest() -> None:
    policy = Policy(default_rules())
    assert policy.decide(WORK, NEW_DISPOSABLE).action is Action.ALLOW
    assert policy.decide(WORK, PERSONAL).action is Action.ASK


@given(st.lists(lines), names, targets)
def test_the_decision_is_that_of_a_plain_search(rules: list[str], source: VmName, target: VmName | None) -> None:
    wanted = "disposable" if target is None else target
    expected = Action.DENY
    for rule in rules:
        left, right, action = rule.split()
        if left in ("*", source) and (right == wanted or (right == "*" and target is not None)):
            expected = Action(action)
            break
    assert decide("\n".join(rules), source, target) is expected


@given(st.text())
def test_any_text_is_rules_or_one_clear_error(text: str) -> None:
    try:
        rules = parse(text, "any")
    except BadPolicy as error:
        assert 1 <= error.line <= text.count("\n") + 1
    else:
        assert all(isinstance(rule.source, VmName) or rule.source is Word.ANY for rule in rules)


@given(st.lists(lines, max_size=5), st.sampled_from(["x y", "work personal perhaps", "☃ * allow"]), st.integers(0, 5))
def test_one_broken_line_spoils_all(rules: list[str], broken: str, at: int) -> None:
    with pytest.raises(BadPolicy):
        parse("\n".join([*rules[:at], broken, *rules[at:]]), "any")


class TestFiles:
    """Reading the folders."""

    @pytest.fixture
    def system(self, tmp_path: Path) -> Path:
        (tmp_path / "system").mkdir()
        return tmp_path / "system"

    @pytest.fixture
    def own(self, tmp_path: Path) -> Path:
        (tmp_path / "own").mkdir()
        return tmp_path / "own"

    def test_the_system_comes_before_the_person_and_names_are_in_order(self, system: Path, own: Path) -> None:
        (own / "00.policy").write_text("work personal allow\nwork bank deny")
        (system / "20.policy").write_text("work personal ask")
        (system / "10.policy").write_text("work personal deny")
        verdict = load((system, own)).decide(WORK, PERSONAL)
        assert verdict.action is Action.DENY
        assert verdict.reason == f"rule work personal deny ({system}/10.policy:1)"
        assert load((system, own)).decide(WORK, BANK).action is Action.DENY

    def test_the_shipped_rules_come_last(self, own: Path) -> None:
        (own / "mine.policy").write_text("* disposable deny\nwork * allow")
        policy = load((own,))
        assert policy.decide(WORK, NEW_DISPOSABLE).action is Action.DENY
        assert policy.decide(WORK, PERSONAL).action is Action.ALLOW
        assert policy.decide(PERSONAL, WORK).action is Action.ASK

    def test_folders_that_do_not_exist_have_no_rules(self, tmp_path: Path) -> None:
        assert load((tmp_path / "none",)).decide(WORK, PERSONAL).action is Action.ASK

    def test_other_and_hidden_files_are_passed_over(self, own: Path) -> None:
        (own / "notes.txt").write_text("not a rule")
        (own / "a.policy~").write_text("not a rule")
        (own / ".#a.policy").symlink_to("user@host.1234")
        assert load((own,)).fault is None

    def test_a_change_holds_at_once(self, own: Path) -> None:
        (own / "a.policy").write_text("work personal allow")
        assert load((own,)).decide(WORK, PERSONAL).action is Action.ALLOW
        (own / "a.policy").write_text("work personal deny")
        assert load((own,)).decide(WORK, PERSONAL).action is Action.DENY

    def test_links_are_followed(self, own: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("work personal allow")
        (own / "a.policy").symlink_to(tmp_path / "elsewhere")
        assert load((own,)).decide(WORK, PERSONAL).action is Action.ALLOW

    def broken(self, own: Path) -> str:
        (own / "zz.policy").write_text("* * allow\n* disposable allow")
        policy = load((own,))
        for target in (PERSONAL, NEW_DISPOSABLE):
            verdict = policy.decide(WORK, target)
            assert verdict.action is Action.DENY
            assert verdict.rule is None
        return verdict.reason

    def test_a_file_that_does_not_parse_denies_everything_and_is_named(self, own: Path) -> None:
        (own / "a.policy").write_text("work personal allow\nwork bank perhaps")
        assert f"{own}/a.policy:2: a rule ends in allow, ask or deny" in self.broken(own)

    def test_a_link_to_nowhere_denies_everything(self, own: Path) -> None:
        (own / "a.policy").symlink_to("nowhere")
        assert f"{own}/a.policy: cannot be read (No such file" in self.broken(own)

    def test_a_folder_in_the_place_of_a_file_denies_everything(self, own: Path) -> None:
        (own / "a.policy").mkdir()
        assert "a.policy: cannot be read" in self.broken(own)

    def test_a_named_pipe_denies_everything_and_holds_nobody(self, own: Path) -> None:
        os.mkfifo(own / "a.policy")
        assert "a.policy: is not a file" in self.broken(own)

    def test_a_file_that_is_too_long_denies_everything(self, own: Path) -> None:
        (own / "a.policy").write_text("#" * (FILE_MAX + 1))
        assert f"longer than {FILE_MAX} bytes" in self.broken(own)

    def test_too_many_files_deny_everything(self, own: Path) -> None:
        for number in range(FILES_MAX + 1):
            (own / f"{number}.policy").touch()
        assert f"more than {FILES_MAX}" in self.broken(own)

    def test_a_file_that_is_not_utf8_denies_everything(self, own: Path) -> None:
        (own / "a.policy").write_bytes(b"# one\n# t\xf6o\n")
        assert "a.policy:2: is not UTF-8" in self.broken(own)

    def test_a_folder_that_is_a_file_denies_everything(self, own: Path) -> None:
        (own / "file").touch()
        policy = load((own / "file",))
        assert policy.decide(WORK, PERSONAL).action is Action.DENY
        assert "cannot be listed (Not a directory)" in policy.decide(WORK, PERSONAL).reason

    def test_a_file_that_cannot_be_read_denies_everything(self, own: Path) -> None:
        (own / "a.policy").symlink_to("a.policy")  # even root cannot read a link to itself
        assert "cannot be read (Too many levels of symbolic links)" in self.broken(own)
