"""`vmcellar.yaml`: what is accepted, and what the messages for the rest say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vmcellar.config import find_config, load_config, parse_config
from vmcellar.config.bandwidth import Bandwidth
from vmcellar.config.jobs import BackupJob, parse_after_window
from vmcellar.config.load import json_schema, shown_config
from vmcellar.config.units import Window, parse_cron, parse_duration, parse_rate, parse_size, parse_window
from vmcellar.errors import PermanentError, UsageError

EXAMPLE = """\
backups:
  - name: production
    schedule: "0 2 * * *"
    storage: "ceph::pool/vm-backups"
    retention: 30d
    compression: zstd:3
    exclude:
      - /var/log transient
  - name: test
    schedule: "0 3 * * *"
    storage: "s3://test-bucket"
    encryption: AES-256
"""
FILE = Path("/somewhere/vmcellar.yaml")


def refusal(text: str) -> str:
    """The message for a file that must be refused."""
    with pytest.raises(UsageError) as caught:
        parse_config(text, FILE)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_the_documented_example_is_accepted_as_it_stands() -> None:
    production, test = parse_config(EXAMPLE, FILE).backups
    assert (production.storage.kind, production.storage.place) == ("ceph", "pool/vm-backups")
    assert production.retention == 30 * 86400
    assert production.compression == "zstd:3"
    assert production.excluded_paths() == ("/var/log transient",)
    assert production.left_out_paths() == (), "a bare path is a note"
    assert (test.storage.kind, test.storage.place, test.encryption) == ("s3", "test-bucket", "AES-256")


def test_all_documented_growth_keys_are_accepted() -> None:
    config = parse_config(
        """
backups:
  - name: big
    domains: [db1, "web-*", "tag:prod"]
    mode: differential
    retention: {hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 3}
    window: 22:00-06:00
    bandwidth: 100MiB/s
    rpo: 24h
    rto: 30m
    tiers: [hot, warm, cold]
    exclude: ["disk:vdz", "disk:db1/vdb", "path:/var/log", "path:/.cache/a b"]
""",
        FILE,
    )
    job = config.job("big")
    assert job.window == Window(22 * 60, 6 * 60)
    assert (job.bandwidth, job.rpo, job.rto) == (Bandwidth.model_validate("100MiB/s"), 86400, 1800)
    assert [job.selects("db1"), job.selects("web-7"), job.selects("mail")] == [True, True, False]
    assert job.selects("mail", frozenset({"prod"}))
    assert job.excluded_disks("db1") == ("vdz", "vdb")
    assert job.excluded_disks("web-7") == ("vdz",)
    assert (job.left_out_paths(), job.excluded_paths()) == (("/.cache/a b", "/var/log"), ())


def test_a_job_leaves_out_what_an_entry_with_an_exclamation_mark_matches() -> None:
    job = BackupJob(name="all", domains=("!db-old", "*", "!template-*", "!tag:scratch"))
    assert [job.selects(vm) for vm in ("db-old", "template-1", "db")] == [False, False, True]
    assert not job.selects("db", frozenset({"scratch"}))
    with pytest.raises(ValidationError, match="only leaves VMs out"):
        BackupJob(name="none", domains=("!db-old",))
    with pytest.raises(ValidationError, match="a tag is letters"):
        BackupJob(name="none", domains=("tag:prod*",))


def test_what_follows_a_window_needs_one_and_is_written_as_it_was_read() -> None:
    for text, value in (("run", "run"), ("stop", "stop"), ("20MiB/s", 20 << 20)):
        job = BackupJob.model_validate({"name": "a", "window": "22:00-06:00", "after_window": text})
        assert job.after_window == value
        assert parse_after_window(job.model_dump()["after_window"]) == value
    with pytest.raises(UsageError, match="after_window needs a window"):
        parse_config("backups: [{name: a, after_window: stop}]", FILE)
    with pytest.raises(UsageError, match="after_window is run, stop, or a rate"):
        parse_config('backups: [{name: a, window: "22:00-06:00", after_window: yes}]', FILE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backups: null", r"backups \(nothing\): must be a list"),
        ("backups: [{name: a b}]", r"backups\[0\].name \(a b\): must match"),
        ("backups: [{name: a, hooks: [{when: now, run: x}]}]", r"hooks\[0\].when \(now\): must be 'before', 'thawed'"),
        ("backups: [{name: a, hooks: [{when: after, run: x, limt: 3}]}]", 'did you mean "limit"'),
    ],
)
def test_odd_files_are_explained(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config(text, FILE)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a directory"):
        find_config(tmp_path)


def test_every_vm_is_meant_by_the_word_all() -> None:
    jobs = parse_config("backups: [{name: a, domains: all}]", FILE).backups
    assert jobs == parse_config("backups: [{name: a}]", FILE).backups
    with pytest.raises(UsageError, match="must be a list"):
        parse_config("backups: [{name: a, domains: web1}]", FILE)


def test_where_a_tag_decides_the_name_alone_tells_nothing() -> None:
    job = BackupJob(name="a", domains=("web*", "tag:prod", "!tag:scratch", "!web-old"))
    assert [job.selects_by_name(vm) for vm in ("web-old", "web1", "db")] == [False, None, None]
    assert BackupJob(name="b", domains=("web*", "tag:prod")).selects_by_name("web1") is True
    assert BackupJob(name="c", domains=("web*", "!tag:x")).selects_by_name("db") is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiers:\n  hott: /x\n", ':2: tiers.hott: unknown key "hott"; did you mean "hot"?'),
        (
            "backups:\n  - name: a\n    retension: 3d\n",
            ':3: backups[0].retension: unknown key "retension"; did you mean',
        ),
        ("backups:\n- name: a\n  retention: {dayly: 3}\n", ':3: backups[0].retention.dayly: unknown key "dayly"; did'),
        (
            "backups:\n  - name: a\n    bandwidth: {8-18: 20MiB/s}\n",
            ":3: backups[0].bandwidth (8-18): a window is two local times of day",
        ),
        ("backups:\n  - name: a\n    bandwidth: {'08:00-18:00': 20}\n", ":3: backups[0].bandwidth (20): a rate is"),
        (
            "backups:\n  - name: a\n    hooks:\n      - {when: before, run: ''}\n",
            ":4: backups[0].hooks[0].run: must not be empty: write it, or leave its entry out",
        ),
        ("tiers: {hot: ftp://x/y}\n", ":1: tiers.hot (ftp://x/y): ftp://x/y: storage is a directory, ceph::pool/"),
        ("tiers: {hot: s3://b}\n", ":1: tiers.hot (s3://b): s3://b: write ceph::pool/namespace or s3://bucket/prefix"),
        ("tiers:\n  hot:\n    storage: /x\n    region: eu\n", ":2: tiers.hot: region is no option of /x"),
        (
            "tiers:\n  hot:\n    storage: s3://bucket\n    regoin: eu\n",
            ':4: tiers.hot.regoin: unknown key "regoin"; did',
        ),
        (
            "tiers:\n  hot: {storage: s3://bucket, access_key: {environment: A}}\n",
            ":2: tiers.hot: give both access_key and secret_key",
        ),
        ("landing: {zzz: 1}\n", ':1: landing.zzz: unknown key "zzz"; valid keys here: budget, dir, direct'),
        ("limits:\n  vms: 0\n", ":2: limits.vms (0): "),
        ("backups:\n  - schedule: '0 2 * * *'\n", ":2: backups[0].name is missing: add the key"),
        (
            "backups:\n  - name: a\n    schedule: 0 25 * * *\n",
            ':3: backups[0].schedule (0 25 * * *): "25" is outside 0-23',
        ),
        ("backups:\n  - name: a\n    storage: ftp://x\n", ":3: backups[0].storage (ftp://x): storage is a tier's name"),
        (
            "backups:\n  - name: a\n    exclude: ['path:/']\n",
            ':3: backups[0].exclude: "path:/": a path is whole and plain',
        ),
        ("backups:\n  - name: a\n    exclude: ['path:var/log']\n", ':3: backups[0].exclude: "path:var/log": a path is'),
        ("backups:\n  - name: a\n    exclude: ['path:/var/../etc']\n", ':3: backups[0].exclude: "path:/var/../etc": a'),
        (
            "backups:\n  - name: a\n    exclude: ['path:/var/log/']\n",
            ':3: backups[0].exclude: "path:/var/log/": a path',
        ),
        ("backups:\n  - name: a\n    exclude: [vdb]\n", ':3: backups[0].exclude: "vdb" is neither a disk'),
        (
            "backups:\n  - name: a\n    mode: full\n  - name: b\n  - mode: full\n    name: a\n",
            ":6: backups[2].name (a): the job in line 2 has this name; give each its own name",
        ),
        (
            "tiers: {hot: /x}\nplacement:\n  hot: 7d\n  cold: rest\n",
            ":4: placement.cold (rest): tiers.cold is missing; say there where this tier is",
        ),
        ("state: /a\nstate: /b\n", ':2: the key "state" stands twice (first in line 1)'),
        ("state: [\n", ":2:1: "),
        ("a: &a [*a]\n", "an anchor refers to itself"),
        ('key:\n  file: "\\uD83D"\n', ":2: half of a letter is escaped"),
        ('state: /a\n"\\uDE00": 1\n', ":2: half of a letter is escaped"),
        ("- a\n", ":1: the file must be a section of keys"),
        ("catalog: {url: sqlite:///x}\n", ":1: catalog.url: must be like postgresql://USER@HOST:PORT/DATABASE"),
        ("catalog: {url: 'postgresql://u:hunter2@h/d'}\n", ":1: catalog.url: holds a password: take it out"),
        ("catalog: {url: 'postgresql://u@h:port/d'}\n", ":1: catalog.url: the port must be a number"),
        ("catalog: {password: {file: /a}}\n", ":1: catalog: password needs url"),
        ("key: {file: /a, environment: B}\n", ":1: key: give exactly one of file, environment and credential"),
    ],
)
def test_mistakes_are_named_with_file_line_path_and_fix(text: str, message: str) -> None:
    assert message in refusal(text)
    assert refusal(text).startswith(str(FILE))


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    lines = refusal("sate: /x\nlimits:\n  vms: many\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "3"]


def test_a_passphrase_written_into_the_file_is_not_repeated_in_the_message() -> None:
    assert "hunter2" not in refusal("key: hunter2\n")
    assert "hunter2" not in refusal("key: {file: [hunter2]}\n")
    assert "hunter2" not in refusal("catalog: {url: 'postgresql://u:hunter2@h/d'}\n")
    assert "hunter2" not in refusal("catalog: {url: 'postgresql://u@h/d?password=hunter2'}\n")


def test_an_empty_file_means_all_defaults_and_names_what_is_missing_when_asked() -> None:
    config = parse_config("# nothing\n", FILE)
    with pytest.raises(UsageError, match=r"tiers\.hot is missing"):
        config.hot_tier()
    with pytest.raises(UsageError, match="no backup job named nightly"):
        config.job("nightly")


def test_relative_paths_are_taken_from_the_folder_of_the_file() -> None:
    config = parse_config("tiers: {hot: repo}\nstate: state\nkey: {file: pass}\n", FILE)
    assert config.hot_tier().directory == Path("/somewhere/repo")
    assert config.state == Path("/somewhere/state")
    assert config.key is not None
    assert config.key.file == Path("/somewhere/pass")


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCELLAR_CONFIG", raising=False)
    monkeypatch.setattr("vmcellar.config.load.SYSTEM_FILE", tmp_path / "etc.yaml")
    with pytest.raises(UsageError, match="no configuration"):
        find_config()
    for name in ("etc.yaml", "vmcellar.yaml", "environment.yaml", "chosen.yaml"):
        (tmp_path / name).touch()
    assert find_config(tmp_path / "chosen.yaml").name == "chosen.yaml"
    assert find_config().name == "vmcellar.yaml"
    monkeypatch.setenv("VMCELLAR_CONFIG", str(tmp_path / "environment.yaml"))
    assert find_config().name == "environment.yaml"
    monkeypatch.setenv("VMCELLAR_CONFIG", str(tmp_path / "gone.yaml"))
    with pytest.raises(UsageError, match="no such file"):
        find_config()
    monkeypatch.delenv("VMCELLAR_CONFIG")
    (tmp_path / "vmcellar.yaml").unlink()
    assert find_config().name == "etc.yaml"


def test_secrets_come_from_file_environment_or_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pass").write_text("from file\n")
    monkeypatch.setenv("VMC_PASS", "from environment")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    def secret(reference: str) -> bytes:
        key = parse_config(f"key: {reference}\n", tmp_path / "vmcellar.yaml").key
        assert key is not None
        return key.read()

    assert secret("{file: pass}") == b"from file"
    assert secret("{environment: VMC_PASS}") == b"from environment"
    assert secret("{credential: pass}") == b"from file"
    for reference in ("{file: gone}", "{environment: VMC_GONE}", "{credential: gone}"):
        with pytest.raises(PermanentError):
            secret(reference)


def test_a_file_that_is_no_text_or_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_config(tmp_path / "binary")
    with pytest.raises(UsageError):
        load_config(tmp_path)


def test_the_schema_knows_the_keys_and_the_shown_values_fill_in_defaults() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {
        "tiers", "placement", "key", "state", "catalog", "scratch", "landing", "libvirt", "limits", "maintenance",
        "notify", "ping", "backups",
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    shown = shown_config(parse_config(EXAMPLE, FILE))
    assert shown["libvirt"]["uri"] == "qemu:///system"
    assert shown["landing"]["budget"] > 0


def test_what_is_shown_is_the_same_configuration_again() -> None:
    job = """
tiers: {hot: /srv/hot}
key: {file: pass}
limits: {freeze: 5s}
backups:
  - {name: a, window: "22:00-06:00", after_window: 5MiB/s, spread: 1h, rpo: 1d, retention: 30d, bandwidth: 9MiB/s}
  - {name: b, retention: {daily: 7}, schedule: {interval: 6h}, storage: "s3://bucket", hooks: [{when: after, run: x}]}
"""
    config = parse_config(job, FILE)
    again = parse_config(yaml.safe_dump(shown_config(config)), FILE)
    assert again.backups == config.backups
    assert shown_config(again) == shown_config(config)


def test_units() -> None:
    assert [parse_size(text) for text in ("1", "1KiB", "1.5 MiB", "2GB", 7)] == [1, 1024, 3 << 19, 2 * 10**9, 7]
    assert [parse_duration(text) for text in ("90s", "15m", "6h", "30d", "2w", "1y")] == [
        90, 900, 21600, 2592000, 1209600, 31536000,
    ]  # fmt: skip
    assert parse_rate("1MiB/s") == 1 << 20
    assert parse_cron("*/15 1-5 1,15 jan mon-fri") == "*/15 1-5 1,15 jan mon-fri"


@pytest.mark.parametrize("text", ["", "-1", "1XB", "MiB", "true", "1e3", None, True])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="a size is"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0 2 * *", "60 * * * *", "a * * * *", "*/0 * * * *", "* * 0 * *", "* * * mon *"])
def test_bad_schedules(text: str) -> None:
    with pytest.raises(ValueError, match=r"schedule|outside|cron"):
        parse_cron(text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_usage_error(text: str) -> None:
    """No input makes a traceback: the parser's own errors never escape."""
    try:
        parse_config(text, FILE)
    except UsageError as error:
        assert str(FILE) in error.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.sampled_from(["30d", "hot", "", "disk:vda"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["tiers", "hot", "key", "file", "backups", "name", "retention", "daily", "limits", "vms", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["tiers", "key", "backups", "limits", "landing", "state", "x"]), VALUES))
def test_any_structure_is_read_or_refused_with_a_usage_error(data: dict[str, object]) -> None:
    try:
        parse_config(yaml.safe_dump(data), FILE)
    except UsageError as error:
        assert error.message.startswith(str(FILE))


def test_windows() -> None:
    assert parse_window("1:05-02:30") == Window(65, 150)
    for text in ("24:00-01:00", "1-2", "22:00"):
        with pytest.raises(ValueError, match="a window is"):
            parse_window(text)


def test_a_tier_is_a_string_or_a_section_with_options() -> None:
    text = (
        "tiers: {hot: {storage: s3://bucket/a/b, endpoint: 'http://h:1', access_key: {file: a}, secret_key: {file: s}}}"
    )
    hot = parse_config(text, FILE).hot_tier()
    assert (hot.kind, hot.storage, hot.endpoint) == ("s3", "s3://bucket/a/b", "http://h:1")
    assert hot.secret_key is not None
    assert hot.secret_key.file == Path("/somewhere/s")
    ceph = parse_config(
        "tiers: {hot: {storage: 'ceph::pool/vm', conf: ceph.conf, user: client.backup}}", FILE
    ).hot_tier()
    assert (ceph.kind, ceph.conf, ceph.user) == ("ceph", Path("/somewhere/ceph.conf"), "client.backup")
    assert parse_config("tiers: {hot: 'ceph::pool/vm-backups'}", FILE).hot_tier().storage == "ceph::pool/vm-backups"


def test_keys_written_into_the_file_are_not_repeated_in_the_message() -> None:
    text = "tiers: {hot: {storage: s3://bucket, access_key: AKIAX, secret_key: hunter2}}"
    assert "hunter2" not in refusal(text)
