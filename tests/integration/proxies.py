"""deploy/nginx.conf and deploy/Caddyfile, each in a proxy that runs."""

import contextlib
import os
import signal
import subprocess

from tests.integration.peers import ask, head, wait_for
from tests.integration.topology import DEPLOY, PORTS

PREFIX = "/weppcloud-microservices"
NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory};
    proxy_temp_path {directory};
    fastcgi_temp_path {directory};
    uwsgi_temp_path {directory};
    scgi_temp_path {directory};
    server {{
        listen 127.0.0.1:{port};
        include {directory}/relay.conf;
    }}
}}
"""


def before(relay, text):
    """A proxy's file with the ports of this relay."""
    for service, port in PORTS.items():
        assert text.count(f"127.0.0.1:{port}") == 1, f"{service} is named once"
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{relay.ports[service]}")
    return text


def nginx(relay, directory, port):
    (directory / "relay.conf").write_text(before(relay, (DEPLOY / "nginx.conf").read_text()))
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, port=port))
    return ["nginx", "-e", "stderr", "-c", str(directory / "nginx.conf")], {}


def caddy(relay, directory, port):
    (directory / "Caddyfile").write_text("{\n\tadmin off\n}\n" + before(relay, (DEPLOY / "Caddyfile").read_text()))
    home = {"RELAY_SITE": f"http://:{port}", "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")], home


@contextlib.contextmanager
def in_front(proxy, relay, directory, port):
    """While the context lasts, `proxy` (nginx or caddy) listens on `port`, and hands PREFIX on to the relay."""
    command, env = proxy(relay, directory, port)
    process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def serves():
        with contextlib.suppress(OSError, AssertionError):
            return ask(f"http://127.0.0.1:{port}", head(f"{PREFIX}/status/livez", "Connection: close")).status == 200

    try:
        wait_for(serves, "a way through the proxy")
        yield
    finally:
        process.send_signal(signal.SIGQUIT if proxy is caddy else signal.SIGTERM)  # or Caddy waits for open streams
        process.wait()
