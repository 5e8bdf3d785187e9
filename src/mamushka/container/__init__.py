"""The wall of namespaces: an OCI runtime. Come in by ``mamushka.container.runtime``.

Read in this order: ``plan`` says what will be done, its operations (``rootfs``, ``mounts``, ``program``, …) write down
the calls, ``spawn`` makes the process that performs them, ``runtime`` offers the verbs, ``record`` is what stays on
disk between two commands.
"""
