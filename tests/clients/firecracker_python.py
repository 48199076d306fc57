"""A machine's life as a program sees it that was written for Firecracker: with firecracker-python, a package of PyPI,
which starts the binary, speaks its API, and knows nothing of this monitor.

firecracker_python.py FIRECRACKER KERNEL INITRD DISK TOOLS TAP PLACE, of which the last is not used

Its class MicroVM wants a Docker daemon and asks the internet for this host's address, so its parts are used: what
starts and ends the process, and what speaks the API.
"""

import os
import re
import socket
import sys
import tempfile
import time

from firecracker.api import Api
from firecracker.exceptions import APIError
from firecracker.process import ProcessManager

firecracker, kernel, initrd, disk, tools, tap, _ = sys.argv[1:]
# The package takes its socket's path for the name of a host, which has no capital letters.
folder = tempfile.TemporaryDirectory()
place = folder.name
ID = "python1"


def log():
    with open(f"{place}/{ID}/firecracker.log", errors="replace") as file:
        return file.read()


def line(begin, patience=120):
    """Waits for a line of the guest that begins so; returns the rest."""
    pattern = re.compile(f"^{re.escape(begin)}(.*?)\r?$", re.M)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = pattern.findall(log())
        if found:
            return found[-1]
        time.sleep(0.1)
    raise SystemExit(f"no line {begin!r}: {log()}")


def refused(call, what):
    try:
        call()
    except APIError as error:
        assert what in str(error), error
    else:
        raise SystemExit(f"not refused, for {what}")


os.makedirs(f"{place}/{ID}")
processes = ProcessManager()
processes._config.binary_path = firecracker
processes._config.data_path = place
api_socket = f"{place}/api.sock"
pid = processes.start(ID, ["--api-sock", api_socket, "--id", ID, "--level", "Warning"])
assert processes.is_running(ID)

api = Api(api_socket)
about = api.describe.get().json()
assert (about["id"], about["state"]) == (ID, "Not started"), about
refused(lambda: api.actions.put(action_type="InstanceStart"), "without kernel configuration")
refused(lambda: api.vm.patch(state="Paused"), "not supported before starting the microVM")
api.boot.put(
    kernel_image_path=kernel,
    initrd_path=initrd,
    boot_args="console=ttyS0 reboot=k panic=1 pci=off ENV=/run.sh",
)
api.machine_config.put(vcpu_count=2, mem_size_mib=256)
api.drive.put(drive_id="disk", path_on_host=disk, is_root_device=True, is_read_only=False)
api.drive.put(drive_id="tools", path_on_host=tools, is_root_device=False, is_read_only=True)
api.network.put(iface_id="eth0", host_dev_name=tap)
api.mmds_config.put(version="V2", ipv4_address="169.254.169.254", network_interfaces=["eth0"])
api.mmds.put(latest={"meta-data": {"name": "violet"}})
api.vsock.put(guest_cid=3, uds_path=f"{place}/v.sock")
config = api.vm_config.get().json()
assert config["machine-config"]["vcpu_count"] == 2, config
api.actions.put(action_type="InstanceStart")
refused(lambda: api.actions.put(action_type="InstanceStart"), "not supported after starting the microVM")
refused(lambda: api.drive.put(drive_id="disk"), "missing field")

assert line("disk: ") == "a disk of the host's"
assert line("network: ") == "a page of the host's"
assert line("metadata: ") == "violet"
line("tick ")

def ask_guest():
    """Asks the guest's server; returns its answer, or nothing if it has not begun yet."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(30)
        stream.connect(f"{place}/v.sock")
        stream.sendall(b"CONNECT 5000\n")
        answer = stream.makefile("rb")
        if not answer.readline().startswith(b"OK "):
            return None
        stream.sendall(b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n")
        return answer.read()


end = time.monotonic() + 30
while (text := ask_guest()) is None:
    assert time.monotonic() < end, "the guest's server does not begin"
    time.sleep(0.2)
assert text.endswith(b"served by the guest"), text

api.drive.patch(drive_id="disk", path_on_host=disk)
api.vm.patch(state="Paused")
assert api.describe.get().json()["state"] == "Paused"
time.sleep(0.5)
before = log()
time.sleep(2)
assert log() == before, "it goes on"
api.vm.patch(state="Resumed")
before = line("tick ")
end = time.monotonic() + 30
while line("tick ") == before:
    assert time.monotonic() < end, "it stands still"
    time.sleep(0.1)

api.actions.put(action_type="SendCtrlAltDel")
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
api.close()
folder.cleanup()
print("the client is content")
