"""Bytes on disk made mountable: layers, writable tops, overlay mounts, volumes, and trees looked into from outside.

Come in by the submodule that is needed; each costs its import only where it is used:

    layers      LayerStore: one directory for each diff_id           apply   a tar stream becomes such a directory
    snapshot    SnapshotStore: a writable top above layers           changes what a top changes, told or packed
    overlay     a stack of directories as a detached mount           volume  VolumeStore
    erofs       a directory as an image for machines                 placement, top   how machines get them, and a disk
    tree        stat, pack and unpack inside a workload's root       copy, pack, remove, usage  whole trees
"""
