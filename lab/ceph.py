"""A real Ceph of one monitor, one manager and one OSD, with an S3 gateway, on loopback, for tests and benches.

Everything lies in one short folder (unix sockets) on /dev/shm. Any user may start one, several may run at once; nothing
of the host's own Ceph is touched. The folder and the daemons go with `stop()`. Settings and traps: docs/tiers.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.shellcommand import LabError
from lab.waiting import wait_for

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "radosgw-admin", "monmaptool", "ceph-authtool", "ceph")
ACCESS, SECRET = "lab-access", "lab-secret-of-forty-characters-no-secret"
_MODULES = Path("/usr/share/ceph/mgr")
_ALWAYS_ON = frozenset(
    {"mgr_module.py", "mgr_util.py", "balancer", "crash", "devicehealth", "orchestrator", "pg_autoscaler"}
    | {"progress", "rbd_support", "status", "telemetry", "volumes"}
)
_OSD_BYTES = 20 << 30
_CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon1}]
keyring = {folder}/keyring
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
ms_bind_ipv6 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
[client]
log_file =
admin_socket =
[mon]
mon_data = {folder}/mon
paxos_propose_interval = 0.05
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_osd_report_timeout = 60
auth_allow_insecure_global_id_reclaim = false
[mgr]
mgr_data = {folder}/mgr
mgr_stats_period = 2
mgr_initial_modules =
mgr_module_path = {folder}/modules
[osd]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {osd_bytes}
bluestore_block_create = true
bluestore_cache_autotune = false
bluestore_cache_size = 134217728
bluestore_fsck_on_mkfs = false
bdev_aio_poll_ms = 10
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_fast_shutdown = true
[client.rgw]
log_file = {folder}/rgw.log
rgw_frontends = beast endpoint=127.0.0.1:{rgw} tcp_nodelay=1
rgw_dynamic_resharding = false
rgw_crypt_s3_kms_backend = testing
rgw_s3_auth_use_sts = true
rgw_sts_key = lab-sixteen-byte
rgw_sts_min_session_duration = 1
"""


def missing_programs() -> list[str]:
    """What of Ceph is not installed here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A running cluster. `endpoint` is its S3 gateway."""

    folder: Path
    ports: dict[str, int]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "ceph.conf"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['rgw']}"

    @classmethod
    def start(cls, *, s3: bool = True) -> Cluster:
        """A new, empty cluster that answers; LabError with the end of a log when it does not."""
        if missing := missing_programs():
            raise LabError(f"not installed: {', '.join(missing)}; `./run test` as root installs them")
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (a folder of its own is made there)
        ports = {name: free_port() for name in ("mon", "mon1", "rgw")}
        cluster = cls(Path(tempfile.mkdtemp(prefix="vmc-ceph-", dir=base)), ports)
        try:
            cluster._make()
            cluster._boot(s3=s3)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def call(self, *command: str) -> str:
        """Run one of Ceph's programs against this cluster; its standard output."""
        done = subprocess.run(
            [command[0], "-c", str(self.conf), *command[1:]],
            env=self._environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")
        return done.stdout

    def make_pool(self, name: str) -> None:
        """A pool of 8 placement groups, ready for use."""
        self.call("ceph", "osd", "pool", "create", name, "8")
        self.call("ceph", "osd", "pool", "application", "enable", name, "vmcellar")

    def make_user(self, name: str, *caps: str) -> Path:
        """A Ceph user with these capabilities; the path of its keyring."""
        path = self.folder / f"{name}.keyring"
        self.call("ceph", "auth", "get-or-create", name, *caps, "-o", str(path))
        return path

    def make_role(self, name: str) -> str:
        """A role that the user `lab` may assume for sessions that end, and that may do all with S3; its ARN."""
        trust = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/lab"]}, "Action": ["sts:AssumeRole"]}
        rights = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
        made = self.call(
            "radosgw-admin", "role", "create", f"--role-name={name}", f"--assume-role-policy-doc={_policy(trust)}"
        )
        self.call(
            "radosgw-admin", "role-policy", "put", f"--role-name={name}", "--policy-name=all",
            f"--policy-doc={_policy(rights)}",
        )  # fmt: skip
        return str(json.loads(made)["Arn"])

    def kill_osd(self) -> None:
        """As power loss would: SIGKILL, no farewell."""
        osd = self.daemons.pop("osd")
        osd.kill()
        osd.wait()

    def start_osd(self) -> None:
        """Start the OSD again and wait until the monitor counts it as up."""
        self._spawn("osd", "ceph-osd", "-f", "-i", "0")
        self.wait_for_osd()

    def wait_for_osd(self) -> None:
        wait_for(lambda: self._osds_up() == 1, f"the OSD to be up; see {self.folder}/osd.0.log", seconds=60)

    def stop(self) -> None:
        """End the daemons and delete everything."""
        for daemon in self.daemons.values():
            with suppress(OSError):
                daemon.send_signal(signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.wait()
        self.daemons.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        fsid = str(uuid.uuid4())
        for name in ("mon", "mgr", "osd", "modules"):
            (self.folder / name).mkdir()
        for module in _ALWAYS_ON:
            if (_MODULES / module).exists():
                (self.folder / "modules" / module).symlink_to(_MODULES / module)
        self.conf.write_text(_CONF.format(folder=self.folder, fsid=fsid, osd_bytes=_OSD_BYTES, **self.ports))
        keyring = self.folder / "keyring"
        for index, (name, caps) in enumerate(_KEYS.items()):
            create = ["-C"] if index == 0 else []
            flags = [part for cap in caps for part in ("--cap", *cap)]
            self._tool("ceph-authtool", *create, str(keyring), "--gen-key", "-n", name, *flags)
        address = f"[v2:127.0.0.1:{self.ports['mon']},v1:127.0.0.1:{self.ports['mon1']}]"
        monmap = str(self.folder / "monmap")
        release = ("--set-min-mon-release", "pacific")
        self._tool("monmaptool", "--create", "--fsid", fsid, *release, "--addv", "a", address, monmap)
        self.call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", str(keyring))

    def _boot(self, *, s3: bool) -> None:
        self._spawn("mon", "ceph-mon", "-f", "-i", "a")
        identity = str(uuid.uuid4())
        self.call("ceph-osd", "-i", "0", "--mkfs", "--no-mon-config", "--osd-uuid", identity)
        wait_for(self._monitor_listens, f"the monitor to listen; see {self.folder}/mon.a.log", seconds=60)
        self._spawn("mgr", "ceph-mgr", "-f", "-i", "x")
        self.call("ceph", "osd", "new", identity, "0")
        self.start_osd()
        if s3:
            self.call(
                "radosgw-admin", "user", "create", "--uid", "lab", "--display-name", "lab",
                "--access-key", ACCESS, "--secret", SECRET,
            )  # fmt: skip
            self._spawn("rgw", "radosgw", "-f", "-n", "client.rgw")
            wait_for(lambda: _listens(self.ports["rgw"]), f"radosgw to listen; see {self.folder}/rgw.log", seconds=60)

    def _monitor_listens(self) -> bool:
        return _listens(self.ports["mon"])

    def _osds_up(self) -> int:
        return int(json.loads(self.call("ceph", "osd", "stat", "-f", "json"))["num_up_osds"])

    def _tool(self, *command: str) -> None:
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [command[0], "-c", str(self.conf), *command[1:]],
                env=self._environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
            )  # fmt: skip

    @staticmethod
    def _environment() -> dict[str, str]:
        """Debian's own Python for `ceph`, whatever environment the tests run in."""
        return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def _policy(statement: Mapping[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


_ALL: Sequence[str] = ("mon", "osd", "mgr", "mds")
_KEYS: dict[str, list[tuple[str, str]]] = {
    "mon.": [("mon", "allow *")],
    "client.admin": [(service, "allow *") for service in _ALL],
    "mgr.x": [("mon", "allow profile mgr"), ("osd", "allow *"), ("mds", "allow *")],
    "osd.0": [("mon", "allow profile osd"), ("mgr", "allow profile osd"), ("osd", "allow *")],
    "client.rgw": [("mon", "allow rw"), ("osd", "allow rwx"), ("mgr", "allow rw")],
}
