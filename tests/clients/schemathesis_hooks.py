"""Has valid requests get further than the first look: a body says the name that its path says, and files are there.

No request names a file outside the folder: names that are made up have no slash.
"""

import atexit
import os
import zlib

import schemathesis
from schemathesis import GenerationMode

# One that two devices have is refused, so there are some.
FILES = 8
accepted = {}

for number in range(FILES):
    if not os.path.exists(f"file{number}"):
        with open(f"file{number}", "wb") as file:
            file.truncate(2 << 20)


def stay_here(value):
    """Takes slashes out of the names of files, wherever they are."""
    if isinstance(value, list):
        for one in value:
            stay_here(one)
    if isinstance(value, dict):
        for name, one in value.items():
            if "path" in name and isinstance(one, str) and "/" in one:
                value[name] = one.replace("/", "_")
            stay_here(one)


def be_quick(query):
    """Waits a moment where a request would wait for minutes."""
    for name in ("timeout_ms", "wait_ms"):
        said = str((query or {}).get(name, ""))
        if said.isdecimal() and int(said) <= 600_000:
            query[name] = int(said) % 50


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if case.method == "DELETE" and "/v1/" in case.path:
        case.query = {"timeout_ms": 20, **(case.query or {})}
    be_quick(case.query)
    stay_here(body)
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or not isinstance(body, dict):
        return
    name = (case.path_parameters or {}).get("id")
    for field in ("drive_id", "iface_id", "id"):
        if name is not None and field in body:
            body[field] = name
    if isinstance(body.get("path_on_host"), str):
        body["path_on_host"] = f"file{zlib.crc32(str(name).encode()) % FILES}"


@schemathesis.hook
def after_call(context, case, response):
    if response.status_code < 300:
        accepted[case.operation.label] = accepted.get(case.operation.label, 0) + 1


@atexit.register
def report():
    for operation, count in sorted(accepted.items()):
        print(f"accepted: {operation} {count} times")
