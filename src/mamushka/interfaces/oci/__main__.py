"""``python -I -S`` with this file: the way in from the front (front.c), which no site's packages lie on."""

import sys

sys.path.insert(0, __file__.rpartition("/mamushka/")[0])

from mamushka import startup

startup.use()

from mamushka.interfaces.oci import main  # noqa: E402

startup.finish(main())
