"""Where every command of README and docs runs: typed from its page by a test, run by another one, or not at all.

A command that a page gains and that nobody typed must be written down here, or `test_ledger.py` fails.
"""

from __future__ import annotations

from pathlib import Path

from tests.docs.pages import Command, commands_of, spoken

PLAYED = {
    "README.md": "tests/docs/test_guest_pages.py::test_readme",
    "restore.md": "tests/docs/test_guest_pages.py::test_restore",
    "operators.md": "tests/docs/test_guest_pages.py::test_operators",
    "configuration.md": "tests/docs/test_host_pages.py::test_configuration",
    "monitoring.md": "tests/docs/test_host_pages.py::test_monitoring",
    "repository-format.md": "tests/repository/test_format_page.py::test_every_example_prints_what_the_page_says",
    "archives.md": "tests/tiers/test_archives_page.py::test_archives",
    "remote-hosts.md": "tests/proof/test_remote.py::test_the_page_remote_hosts",
    "prefect.md": "tests/flows/test_prefect_page.py::test_prefect",
    "tiers.md": "tests/docs/test_host_pages.py::test_tiers",
    "upkeep.md": "tests/docs/test_host_pages.py::test_upkeep",
    "restore-by-hand.md": "tests/proof/test_restore_by_hand.py::test_every_command_of_the_page_does_what_it_says",
}
"""Pages of which this test types every command but those below."""

SPOKEN = ("operators.md", "upkeep.md", "tiers.md")
"""Of these, what operators type in need, also the commands within lines; of the others, those in blocks."""

S3 = "tests/tiers/test_end_to_end.py::test_the_commands_work_there"
LOCK = "tests/tiers/test_lock.py::test_what_is_deleted_or_written_over_on_top_of_a_lock_is_found_and_comes_back"
WHEEL = "tests/deployments/test_wheel.py::test_an_installed_program_sets_up_backs_up_and_makes_the_catalog_anew"
README = PLAYED["README.md"]
RESTORE = PLAYED["restore.md"]
OPERATORS = PLAYED["operators.md"]
UP = "tests/flows/test_deploy.py::test_up_serves_the_jobs_and_stops_cleanly"
DEPLOY = "tests/flows/test_deploy.py::test_deploy_registers_every_job_once_and_takes_away_what_is_gone"
DRAIN = "tests/flows/test_drain.py::test_a_host_that_serves_is_drained_when_its_run_has_ended"
FILES = "tests/guestfiles/test_files.py::test_the_commands_of_the_page_on_lvm_and_what_is_encrypted"

ELSEWHERE: dict[str, dict[str, str]] = {
    "README.md": {
        "python3 -m venv --system-site-packages /opt/vmcellar": WHEEL,
        "/opt/vmcellar/bin/pip install -c dist/constraints.txt dist/vmcellar-*.whl": WHEEL,
        "vmcellar prove web1@latest": OPERATORS,
        "vmcellar serve web1@latest": RESTORE,
        "vmcellar files web1@latest get /etc/nginx .": RESTORE,
        "vmcellar up": UP,
        "vmcellar deploy": DEPLOY,
    },
    "operators.md": {
        "vmcellar drain": DRAIN,
        "vmcellar drain --end": DRAIN,
        "vmcellar drill web1@latest": README,
        "vmcellar up": UP,
    },
    "restore.md": {
        "vmcellar files web1@latest get vg0/data:/srv/db /srv/db-of-monday": FILES,
        "vmcellar files web1@latest ls vda2:/ --key vda2=/root/web1.pass": FILES,
    },
    "prefect.md": {"vmcellar up": UP},
    "tiers.md": {
        "vmcellar doctor": README,
        "vmcellar init --tier hot=s3://bucket/prefix --passphrase-file FILE": S3,
        "vmcellar tiers undelete NAME": LOCK,
    },
    "installing.md": {
        "python3 -m venv --system-site-packages /opt/vmcellar": WHEEL,
        "/opt/vmcellar/bin/pip install -c dist/constraints.txt dist/vmcellar-*.whl": WHEEL,
        "ln -s /opt/vmcellar/bin/vmcellar /usr/local/bin/": README,
        "vmcellar doctor": README,
        "vmcellar drain": DRAIN,
        "vmcellar drain --wait 0s": DRAIN,
        "vmcellar drain --end": DRAIN,
    },
}
"""By page and command: the test that runs it, perhaps in other words. What takes seconds is typed once."""

SUITE = "it is what runs this test"
APT = "a test installs no packages; `./run setup` installs these, and test_other_commands.py compares the lists"
ANSIBLE = (
    "it changes a whole machine, or fetches packages; `VMCELLAR_ANSIBLE=1 ./run test "
    "tests/deployments/test_ansible.py` does it on bare ones, and CI does not"
)
UV = "Debian 12 has no uv"
NAME = "it is named without what it needs, which stands beside it"
NOT_HERE: dict[str, dict[str, str]] = {
    "README.md": {
        "./run demo": "it sets up the machine; what it does then is done by tests/proof and by the page itself",
        "./run test": SUITE,
        "./run package": ANSIBLE,
        "apt install libvirt-daemon-system qemu-utils nbdkit nbdkit-plugin-python python3-libvirt python3-libnbd "
        "python3-venv": APT,
    },
    "operators.md": {
        "systemctl reboot": "it would end the machine of the tests",
        "vmcellar key remove": NAME,
    },
    "tiers.md": {
        "vmcellar tiers add NAME": NAME,
        "vmcellar key remove": NAME,
        "vmcellar thaw": NAME,
        "vmcellar tiers move --identity FILE": "for recipient mode: "
        "tests/upkeep/test_repack.py repacks with the private key by the engine",
    },
    "upkeep.md": {
        "vmcellar prune [VM]...": NAME,
        "vmcellar verify": NAME,
        "vmcellar gc --identity FILE": "for recipient mode: "
        "tests/upkeep/test_repack.py repacks with the private key by the engine",
    },
    "installing.md": {
        "ansible-playbook -i kvm1.example,kvm2.example, --check --diff "
        "-e vmcellar_wheel=$PWD/dist/vmcellar-0.1.0-py3-none-any.whl "
        "-e vmcellar_constraints=$PWD/dist/constraints.txt deployments/ansible/site.yml": ANSIBLE,
        "cp deployments/systemd/*.service /etc/systemd/system/": ANSIBLE,
        "systemctl daemon-reload": ANSIBLE,
        "systemctl enable --now vmcellar-recover vmcellar-server vmcellar-serve vmcellar-metrics": ANSIBLE,
        "apt install --no-install-recommends libvirt-daemon-system qemu-utils nbdkit nbdkit-plugin-python "
        "python3-libvirt python3-libnbd python3-venv": APT,
        "uv venv --python /usr/bin/python3 --system-site-packages /opt/vmcellar": UV,
        "uv pip install --python /opt/vmcellar/bin/python --compile-bytecode -c dist/constraints.txt "
        "dist/vmcellar-*.whl": UV,
        "uv tool install --python /usr/bin/python3 -c dist/constraints.txt dist/vmcellar-*.whl": UV,
        'echo /usr/lib/python3/dist-packages > "$(uv tool dir)/vmcellar/lib/python3.11/site-packages/debian.pth"': UV,
        "systemctl restart vmcellar-server vmcellar-serve vmcellar-metrics": ANSIBLE,
    },
    "remote-hosts.md": {
        "ssh-copy-id -i /root/.ssh/kvm2.pub root@kvm2.example": "it lets a key in for root of this very machine; the "
        "host of tests/proof/test_remote.py is entered by a key that was put there",
    },
}
"""By page and command: why no test runs it."""

PLAIN = {
    "architecture.md": ["guest ──── QEMU"],
    "remote-hosts.md": ["backup_tls_x509_cert_dir"],
}
"""By page: how its blocks begin that hold no commands and are of no language."""


def meant(page: Path) -> list[Command]:
    """The commands of a page that have to run, in their order."""
    return sorted([*commands_of(page), *(spoken(page) if page.name in SPOKEN else ())], key=lambda each: each.place)


def excused(command: Command) -> bool:
    """Whether the page's own test need not type it."""
    return command.text in {**ELSEWHERE.get(command.page, {}), **NOT_HERE.get(command.page, {})}
