"""Secrets are taken out of texts, and what isn't one stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from vibethinker import redaction
from vibethinker.errors import DataError
from vibethinker.redaction import HIDDEN, redact

ENVIRON = {
    "OPENAI_API_KEY": "a-plain-word",
    "HF_TOKEN": "token&of<mine>",
    "MLFLOW_TRACKING_PASSWORD": "hunter2hunter2",
    "PREFECT_API_AUTH_STRING": "admin:letmein",
    "SLACK_WEBHOOK_URL": "http://127.0.0.1:5000/hook",
    "TEAM_APPRISE_URLS": "json://127.0.0.1/first mailto://me:pw@host.example",
    "DATABASE_URL": "postgresql://prefect:pa55@db:5432/prefect",
    "SSH_AUTH_SOCK": "/run/agent",
    "MONKEY": "bananas!",
    "PIN_KEY": "1234",
}


@pytest.mark.parametrize("name", [n for n in ENVIRON if n not in ("SSH_AUTH_SOCK", "MONKEY", "PIN_KEY")])
def test_the_value_of_a_variable_that_is_named_like_a_key_is_hidden(name: str) -> None:
    for value in ENVIRON[name].split():
        shown = redact(f"before {value} after", environ=ENVIRON)
        assert shown == f"before {HIDDEN} after"


@pytest.mark.parametrize("name", ["SSH_AUTH_SOCK", "MONKEY", "PIN_KEY"])
def test_paths_short_values_and_other_variables_stay(name: str) -> None:
    text = f"before {ENVIRON[name]} after"
    assert redact(text, environ=ENVIRON) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("hf_AbCdEfGhIjKlMnOpQr", "AbCdEf"),
        ("key sk-proj-abcd_efgh-1234", "abcd_efgh"),
        ("xoxb-1234-5678-abcdef and xoxp-9876-5432-fedcba", "abcdef"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", "uvwxyz"),
        ("pnu_abcdefghijklmnopqrstuvwxyz", "uvwxyz"),
        ("AKIAABCDEFGHIJKLMNOP", "ABCDEFGH"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "c2lnbmF0"),
        ("https://hooks.slack.com/services/T00/B00/XyZ", "XyZ"),
        ("postgresql+asyncpg://prefect:pa55word@db:5432/x", "pa55word"),
        ("mailto://user:pa55word@example.org", "pa55word"),
        ("https://store/x?X-Amz-Signature=abcdef&part=1", "abcdef"),
        ("GET /v1?token=abcdef&n=1", "abcdef"),
        ("Authorization: Bearer abcdef.ghijkl", "abcdef"),
        ("Authorization: Basic YWRtaW46bGV0bWVpbg==", "YWRtaW4"),
        ("{'api_key': 'qwertz123'}", "qwertz"),
        ('{"client_secret": "qwertz123"}', "qwertz"),
        ("password=hunter2", "hunter2"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----", "MIIE"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEabc, whose end was cut off", "MIIE"),
    ],
)
def test_what_has_the_form_of_a_secret_is_hidden(text: str, secret: str) -> None:
    shown = redact(text, environ={})
    assert secret not in shown
    assert HIDDEN in shown


def test_the_rest_of_an_address_stays() -> None:
    shown = redact("postgresql://prefect:pa55word@db:5432/x?token=abc&n=1", environ={})
    assert shown == f"postgresql://{HIDDEN}@db:5432/x?token={HIDDEN}&n=1"


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=400000, eos_token: </s>, 12 tokens: 3",
        "task-force risk-averse-decision sk-learn",
        "http://127.0.0.1:4200/runs/flow-run/0c1de0a5-63b0-4b9e-a7ae-0f3c3a2a5a3e",
        "vibethinker run --config runs/tiny-20260101-101010-ab12/config.yaml --workspace /data/w",
        "me@example.org wrote: Basic understanding",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, environ={}) == text


def test_given_secrets_are_hidden_whole_even_if_one_is_a_part_of_another() -> None:
    assert redact("a secret-and-more", ["secret", "secret-and-more"], {}) == f"a {HIDDEN}"


@pytest.mark.parametrize("sent", ["hunter2hunter2", "bWU6aHVudGVyMmh1bnRlcjI=", "pa55%2Fword", "pa55/word"])
def test_a_password_is_hidden_in_each_form_in_which_it_is_sent(sent: str) -> None:
    environ = {
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "hunter2hunter2",
        "DATABASE_URL": "postgresql://prefect:pa55%2Fword@db:5432/prefect",
    }
    assert redact(f"before {sent} after", environ=environ) == f"before {HIDDEN} after"


def test_a_password_that_is_its_user_s_name_is_a_word_like_others() -> None:
    environ = {"DATABASE_URL": "postgresql://prefect:prefect@db:5432/prefect"}
    assert redact("prefect deployment run", environ=environ) == "prefect deployment run"


def test_what_was_learned_is_hidden_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_learned", set())
    assert redact("of a block", environ={}) == "of a block"
    redaction.learn(["of a block"])
    assert redact("of a block", environ={}) == HIDDEN


def test_a_failure_repeats_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "a-planted-key")
    assert str(DataError("refused: a-planted-key")) == f"refused: {HIDDEN}"


def test_a_file_is_cleaned_and_one_without_secrets_is_left_as_it_is(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    log.write_bytes(b"\xffhf_abcdefghijklmnop\r\nrest")
    redaction.clean(log)
    assert log.read_bytes() == b"\xff" + HIDDEN.encode() + b"\r\nrest"
    other.write_bytes(b"\xffnothing\r\n")
    other.chmod(0o400)
    before = other.stat().st_mtime_ns
    redaction.clean(other)
    assert (other.read_bytes(), other.stat().st_mtime_ns) == (b"\xffnothing\r\n", before)
    redaction.clean(tmp_path / "there is none")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("hunter2hunter2\n", "hunter2hunter2"),  # of a file, as Kubernetes mounts secrets
        ("/9j/4AAQSkZJRg+abc", "/9j/4AAQSkZJRg+abc"),  # base64 that begins like a path
        ('qu"o\\te-ä', '"qu\\"o\\\\te-\\u00e4"'),  # in JSON
        ("\udcff\udcfe123456", "%FF%FE123456"),  # no text at all
    ],
)
def test_a_value_is_hidden_however_it_was_written(value: str, shown: str) -> None:
    assert value.strip() not in redact(f"before {value.strip()} after", environ={"API_KEY": value})
    assert HIDDEN in redact(f"before {shown} after", environ={"API_KEY": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POSTGRES_PASSWORD", "prefect"),
        ("SECRET_NAME", "vibethinker-secrets"),
        ("MLFLOW_TRACKING_AUTH", "databricks"),
        ("DB_PASSWORD", "workspace"),
    ],
)
def test_a_common_word_leaves_commands_and_paths_as_they_are(name: str, value: str) -> None:
    text = f"prefect deployment run vibethinker/tiny --workspace /data/workspace/x # {name}"
    assert redact(text, environ={name: value}) == text


def test_a_word_that_is_a_password_is_hidden_where_it_stands_for_itself() -> None:
    assert redact("refused hunter.", environ={"DB_PASSWORD": "hunter"}) == f"refused {HIDDEN}."


def test_short_values_that_were_learned_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_learned", {"x"})
    assert redact("execution.max_tokens", environ={}) == "execution.max_tokens"


def test_a_long_scheme_before_an_address_keeps_no_password() -> None:
    assert "pa55word" not in redact("a-" * 1000 + "postgresql://me:pa55word@db", environ={})


def test_a_file_that_can_t_be_written_anew_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("hf_abcdefghijklmnop\n" * 100)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        redaction.clean(log)
    assert log.read_text() == "hf_abcdefghijklmnop\n" * 100
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_private_key_on_the_border_of_two_parts_is_hidden_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "PART", 40)
    log = tmp_path / "log"
    log.write_text("before\n-----BEGIN PRIVATE KEY-----\nMIIEabc\nMIIEdef\n-----END PRIVATE KEY-----\nafter\n")
    redaction.clean(log)
    assert log.read_text() == f"before\n{HIDDEN}\nafter\n"
