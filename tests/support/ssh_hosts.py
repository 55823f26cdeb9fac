"""Hosts on one machine, reached by ssh: each has its own network, processes, name, home and private folder.

Linux, root. `ray stop` ends every Ray process that it can see, so hosts with one process table would stop
each other, and any other test's Ray.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SSH_OPTIONS = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "ip": "iproute2"}

SSHD_CONFIG = """
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
ListenAddress {address}
SetEnv RAY_TMPDIR={private} TMPDIR={private}
"""

# A process id of 1 in a process table of its own: when it ends, the kernel ends everything on the host.
START = """
mount -t tmpfs private {private} && mount --bind {home}/passwd /etc/passwd &&
hostname {name} && ip link set lo up && exec /usr/sbin/sshd -D -e -f {home}/sshd_config
"""


@dataclass(frozen=True)
class Host:
    """A host: `private` is a folder that each host has to itself, though the path is the same everywhere."""

    name: str
    address: str
    home: Path
    private: Path
    sshd: subprocess.Popen

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a login would; its output and errors are one."""
        ssh = ["ssh", *SSH_OPTIONS, "-i", self.home.parent / "key", f"{getpass.getuser()}@{self.address}"]
        words = [*ssh, f"source ~/.bashrc; {command}"]
        return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=-1, stderr=subprocess.STDOUT, text=True)

    def processes(self) -> dict[int, str]:
        """Command lines of what runs on the host besides its sshd, by process id of this machine."""
        init = self.init()
        table = os.readlink(f"/proc/{init}/ns/pid")
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if os.readlink(entry / "ns/pid") == table and int(entry.name) != init and words:
                    found[int(entry.name)] = words
        return found

    def init(self) -> int:
        """Process id of the host's sshd."""
        children = Path(f"/proc/{self.sshd.pid}/task/{self.sshd.pid}/children").read_text().split()
        return int(children[0])


def why_not() -> str | None:
    """Why hosts cannot be had on this machine, or None; missing programs are installed where apt is there."""
    if os.geteuid() != 0:
        return "network and process namespaces need root"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(install, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        return f"needs {', '.join(missing)}, and apt-get cannot install them"
    probe = [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--uts",
        "--mount-proc",
        "ip",
        "link",
        "add",
        "type",
        "veth",
    ]
    done = subprocess.run(probe, capture_output=True, text=True)
    return f"namespaces are not permitted here ({done.stderr.strip()})" if done.returncode else None


@contextlib.contextmanager
def ssh_hosts(names: Sequence[str]) -> Iterator[tuple[Path, list[Host]]]:
    """Hosts on a network of their own, all with `key` of the folder that is yielded first.

    All hosts see the folder, as they would see NFS. Its path is short: Ray puts sockets below `private`.
    """
    folder = Path(tempfile.mkdtemp(prefix="lorae-", dir="/tmp"))
    tag = folder.name[-4:].lower()
    bridge, network = f"lb{tag}", _free_network()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    hosts: list[Host] = []
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        undo.callback(_ip, f"link delete {bridge}")
        _ip(f"link add {bridge} type bridge")
        _ip(f"address add {network}.1/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for number, name in enumerate(names, 2):
            hosts.append(_start(folder, name, f"{network}.{number}", bridge, f"lo{tag}{number}", undo))
        yield folder, hosts


def _start(folder: Path, name: str, address: str, bridge: str, link: str, undo: contextlib.ExitStack) -> Host:
    home, private = folder / name, folder / "p"
    home.mkdir()
    private.mkdir(exist_ok=True)
    (home / ".bashrc").touch()
    passwd = Path("/etc/passwd").read_text().replace(f":{pwd.getpwuid(0).pw_dir}:", f":{home}:")
    (home / "passwd").write_text(passwd)  # ssh takes the home folder from here, not from HOME
    config = SSHD_CONFIG.format(folder=folder, address=address, private=private)
    (home / "sshd_config").write_text(config)
    undo.callback(_ip, f"netns delete {link}")
    _ip(f"netns add {link}")
    _ip(f"link add {link} type veth peer name eth0 netns {link}")
    _ip(f"link set {link} master {bridge} up")
    _ip(f"-n {link} address add {address}/24 dev eth0")
    _ip(f"-n {link} link set eth0 up")
    _ip(f"-n {link} route add default via {address.rpartition('.')[0]}.1")  # Ray finds its address by it
    start = START.format(private=private, name=name, home=home)
    inside = f"ip netns exec {link} unshare --pid --fork --kill-child --uts --mount-proc sh -c".split()
    with (folder / f"{name}.log").open("w") as log:
        sshd = subprocess.Popen([*inside, start], stdout=log, stderr=log)
    undo.callback(_stop, sshd)
    host = Host(name, address, home, private, sshd)
    for _ in range(100):
        if (done := host.run("true")).returncode == 0:
            return host
        time.sleep(0.1)
    raise AssertionError((folder / f"{name}.log").read_text() + done.stdout)


def _stop(sshd: subprocess.Popen) -> None:
    sshd.kill()
    sshd.wait()


def _free_network() -> str:
    taken = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    return next(n for n in (f"10.77.{i}" for i in range(256)) if f"{n}.0/24" not in taken)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
