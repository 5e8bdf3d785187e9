"""The room that ties the others together: what runs, on which root, in which network, and what became of it.

Come in by ``engine.Engine``; what may be asked of a workload is in ``settings``, what is known of one in ``workload``.
``creation``, ``starting``, ``shim`` and ``ending`` are a workload's life in order; ``gc`` repairs what killed processes
leave; ``state`` is the database, which ``records`` beside each workload could rebuild.
"""
