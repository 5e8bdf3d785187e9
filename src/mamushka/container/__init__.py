"""The wall of namespaces: an OCI runtime. Come in by ``mamushka.container.runtime``.

Read in this order: ``plan`` says what will be done, ``spawn`` makes the process in which it is done, ``init`` does
it there, ``runtime`` offers the verbs, ``record`` is what stays on disk between two commands.
"""
