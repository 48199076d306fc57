"""Requests that schemathesis, a package of PyPI, makes up from the OpenAPI document, asked of a machine.

schemathesis_openapi.py SOCKET DOCUMENT EXAMPLES, in a folder that can be lost: requests name files that are made here

Its client knows TCP only, so what it says to a port is passed on to the unix socket.
"""

import os
import socket
import subprocess
import sys
import threading

path, document, examples = sys.argv[1:]


def pass_on(source, sink):
    """Passes bytes on until there are no more; then the other end hears of it."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(client):
    server = socket.socket(socket.AF_UNIX)
    with client, server:
        server.connect(path)
        there = threading.Thread(target=pass_on, args=(client, server), daemon=True)
        there.start()
        pass_on(server, client)


def forward(listener):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=forward, args=(listener,), daemon=True).start()
here = os.path.dirname(os.path.abspath(__file__))
command = [f"{sys.prefix}/bin/st", "--config-file", f"{here}/schemathesis.toml", "run", document]
command += ["--url", f"http://127.0.0.1:{listener.getsockname()[1]}", "--max-examples", examples]
environment = {**os.environ, "SCHEMATHESIS_HOOKS": f"{here}/schemathesis_hooks.py"}
status = subprocess.run(command, env=environment, timeout=300).returncode
if status == 0:
    print("the client is content")
sys.exit(status)
