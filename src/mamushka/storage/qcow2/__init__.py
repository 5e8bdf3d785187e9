"""qcow2 images, versions 2 and 3, read and written.

header      the first cluster as a value           create      new images, also with a backing file
cache       clusters of tables, a bounded number   refcounts   who uses which cluster; finding free ones
image       the disk: two tables lead from guest offsets to host offsets (the essay on safety is there)
"""
