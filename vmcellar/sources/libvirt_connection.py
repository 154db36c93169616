"""One connection to libvirt, kept alive over daemon restarts, and libvirt's errors in our classes."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import os
import threading

import libvirt
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.sources.base import UnknownVmError
from vmcellar.sources.libvirt_keepalive import open_alive
from vmcellar.sources.libvirt_uri import other_host

RECONNECT_SECONDS = 20
"""How long a daemon that was there may take to come back, as in a package upgrade."""

_CONNECTION_CODES = frozenset({libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN})
_GUARD = threading.Lock()


class BusyError(TransientError):
    """Another operation holds the domain's state change lock (pitfall 15): the one libvirt error worth a retry."""


def explain(error: libvirt.libvirtError, vm: str, doing: str) -> VmcellarError:
    """The error of ours that stands for `error`, by its code, domain and errno, never by its text."""
    message = f"{vm}: {doing}: {error}"
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return BusyError(message, hint="another operation works on this VM; see `virsh domjobinfo`, then try again")
    if is_connection_lost(error):
        return TransientError(message, hint="libvirt's daemon went away, or hangs; it is tried again")
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in (errno.ENOSPC, errno.EDQUOT):
        return PermanentError(
            message, hint="free space where the scratch files lie, or set `scratch` to another folder"
        )
    return PermanentError(message, hint=f"see `virsh dominfo {vm}` and /var/log/libvirt/qemu/{vm}.log")


def is_connection_lost(error: libvirt.libvirtError) -> bool:
    """Whether the way to the daemon broke, rather than that the daemon refused."""
    from_rpc = error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
    return error.get_error_code() in _CONNECTION_CODES or (
        from_rpc and error.get_error_code() in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR)
    )


class Connection:
    """A connection that opens when first used and again after the daemon restarted. Any thread may use it."""

    def __init__(self, uri: str) -> None:
        """`uri` as virsh takes it, for example qemu:///system."""
        self.uri = uri
        self._lock = threading.Lock()
        self._open: libvirt.virConnect | None = None

    def close(self) -> None:
        """Close the connection; the next use opens it again.

        Also called when the process ends: later, the binding's own clean-up fails with a message on standard error.
        """
        with self._lock, contextlib.suppress(libvirt.libvirtError):
            if self._open is not None:
                self._open.close()
            self._open = None
        atexit.unregister(self.close)

    def domain(self, vm: str) -> libvirt.virDomain:
        """The domain of that name; UnknownVmError with similar names when there is none.

        This call also mends a broken connection, so operations begin with it.
        """
        domain = self.find(vm)
        if domain is None:
            raise self._no_such(vm)
        return domain

    def running(self, vm: str) -> libvirt.virDomain:
        """The domain of that name; PermanentError when it does not run."""
        domain = self.domain(vm)
        if not domain.isActive():
            raise PermanentError(
                f"{vm}: the VM is not running",
                hint=f"type `vmcellar backup {vm} --start-paused`, which reads its disks without letting it run "
                f"(`when_off: start-paused` for a job), or `virsh start {vm}`",
            )
        return domain

    def find(self, vm: str) -> libvirt.virDomain | None:
        """The domain of that name, or None."""
        try:
            return self._lookup(self._connection(), vm)
        except libvirt.libvirtError as error:
            if not is_connection_lost(error):
                raise explain(error, vm, "looking up the VM") from error
        self._drop()
        try:
            return self._lookup(self._reconnect(), vm)
        except libvirt.libvirtError as error:
            raise explain(error, vm, "looking up the VM") from error

    def define(self, xml: str, name: str) -> libvirt.virDomain:
        """Define the domain `name` from its XML; PermanentError with libvirt's reason when it refuses."""
        try:
            return self._connection().defineXML(xml)
        except libvirt.libvirtError as error:
            raise explain(error, name, "defining the VM") from error

    def names(self) -> list[str]:
        """The names of all domains, sorted."""
        return sorted(domain.name() for domain in self.domains())

    def domains(self, flags: int = 0) -> list[libvirt.virDomain]:
        """All domains, those that are off, too; `flags` (VIR_CONNECT_LIST_DOMAINS_...) choose among them."""
        connection = self._connection()
        try:
            return list(connection.listAllDomains(flags))
        except libvirt.libvirtError as error:
            if is_connection_lost(error):
                self._drop()
            raise explain(error, self.uri, "listing the VMs") from error

    def pool_xml(self, pool: str) -> str:
        """The XML of a storage pool; PermanentError when it is not there or not active."""
        try:
            found = self._connection().storagePoolLookupByName(pool)
            found.refresh()
            return str(found.XMLDesc())
        except libvirt.libvirtError as error:
            raise PermanentError(f"pool {pool}: {error}", hint="see `virsh pool-list --all`") from error

    def volume(self, pool: str, name: str, xml: str) -> str:
        """The path of a volume, which is made from `xml` if it is not there; PermanentError when that fails."""
        try:
            found = self._connection().storagePoolLookupByName(pool)
            present = name in found.listVolumes()
            volume = found.storageVolLookupByName(name) if present else found.createXML(xml)
            return str(volume.path())
        except libvirt.libvirtError as error:
            raise PermanentError(f"vol:{pool}/{name}: {error}", hint=f"see `virsh vol-list {pool}`") from error

    @staticmethod
    def _lookup(connection: libvirt.virConnect, vm: str) -> libvirt.virDomain | None:
        try:
            return connection.lookupByName(vm)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _no_such(self, vm: str) -> UnknownVmError:
        names = self.names()
        near = difflib.get_close_matches(vm, names, n=3, cutoff=0.5) or names[:5]
        hint = f"did you mean {', '.join(near)}?" if near else "this libvirt has no VM at all;"
        return UnknownVmError(f"{vm}: no such VM at {self.uri}", hint=f"{hint} `virsh list --all` shows them all")

    def _connection(self) -> libvirt.virConnect:
        with self._lock:
            if self._open is None:
                self._open = _connect(self.uri)
                atexit.register(self.close)
            return self._open

    def _drop(self) -> None:
        with self._lock:
            self._open = None

    def _reconnect(self) -> libvirt.virConnect:
        retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_delay(RECONNECT_SECONDS),
            wait=wait_exponential(0.1, max=2),
            reraise=True,
        )
        return retrying(self._connection)


def _connect(uri: str) -> libvirt.virConnect:
    with _GUARD:
        libvirt.registerErrorHandler(_drop_message, None)
    try:
        return open_alive(uri)
    except libvirt.libvirtError as error:
        raise _no_connection(uri, error) from error


def _drop_message(_context: object, _error: object) -> None:
    """Keep libvirt from printing to standard error what we raise as an exception."""


def _no_connection(uri: str, error: libvirt.libvirtError) -> VmcellarError:
    message = f"no connection to libvirt at {uri}: {error}"
    number = error.get_int1() if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR else 0
    refused = (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_AUTH_UNAVAILABLE)
    if number in (errno.EACCES, errno.EPERM) or error.get_error_code() in refused or _polkit_missing(error):
        hint = "this user may not use libvirt: run as root, or `usermod -aG libvirt USER` and log in again"
        return PermanentError(message, hint=hint)
    host = other_host(uri)
    if host:
        hint = f"log in to {host} without a question first, as with `ssh {host}`; then `virsh -c URI list`"
        return TransientError(message, hint=f"{hint} (docs/remote-hosts.md)")
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        hint = "start the daemon: `systemctl start libvirtd` (or virtqemud.socket); without systemd, `libvirtd -d`"
        return TransientError(message, hint=hint)
    return PermanentError(message, hint="check `libvirt.uri` in vmcellar.yaml with `virsh -c URI list`")


def _polkit_missing(error: libvirt.libvirtError) -> bool:
    """Without a system bus libvirt answers an unprivileged user with an internal error about the bus."""
    return os.geteuid() != 0 and error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR
