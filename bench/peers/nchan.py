"""nchan.py PORT TMP: nginx with its nchan module, in the foreground, all its files below TMP.

Nothing of it comes from Redis: the text of a frame is published to it with POST /pub?id=<run>:<channel>.
"""

import os
import resource
import sys
from pathlib import Path

port, tmp = sys.argv[1:]
home = Path(tmp, f"nchan-{port}")
home.mkdir()
template = Path(__file__).with_name("nchan.conf").read_text()
# As root, workers would become nobody, who may not enter a private folder.
user = "user root;" if os.geteuid() == 0 else ""
files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
conf = home / "nginx.conf"
conf.write_text(template.format(port=port, tmp=home, user=user, files=files))
os.execvp("nginx", ["nginx", "-c", str(conf), "-e", str(home / "error.log")])
