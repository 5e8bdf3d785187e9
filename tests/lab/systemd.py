"""systemd as the lab's first process: the host's own program, with as few units as do the work.

A target of ours pulls in one service, the command, and what it asks for, a system bus. Nothing of the host's own
configuration is looked at (SYSTEMD_UNIT_PATH, see initramfs), and the targets that any unit depends on are empty, so
what tests start there is there at once. systemd.unit(5); bootup(7).
"""

from __future__ import annotations

import os

INIT = "/lib/systemd/systemd"
# Read from /proc/cmdline by systemd. kernel-command-line(7)
KERNEL = "systemd.unit=lab.target systemd.show_status=no systemd.log_level=warning systemd.log_target=kmsg"
UNITS = {
    "lab.target": """[Unit]
DefaultDependencies=no
Requires=lab.service
""",
    # The shell's last words to the console are the exit status, and with them the machine ends: see initramfs.
    "lab.service": """[Unit]
DefaultDependencies=no
Requires=dbus.service
After=dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh /run/command
StandardOutput=file:/dev/console
StandardError=inherit
Delegate=yes
TasksMax=infinity
""",
    "sysinit.target": "[Unit]\nDefaultDependencies=no\n",
    "basic.target": "[Unit]\nDefaultDependencies=no\n",
    "shutdown.target": "[Unit]\nDefaultDependencies=no\n",
    "dbus.socket": """[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
""",
    "dbus.service": """[Unit]
DefaultDependencies=no
Requires=dbus.socket
After=dbus.socket
[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
""",
}


def missing() -> str:
    """The packages that systemd in the lab needs and the host lacks; empty when there are none."""
    wanted = {INIT: "systemd", "/usr/bin/dbus-daemon": "dbus"}
    return " ".join(package for path, package in wanted.items() if not os.path.exists(path))
