"""What an image is and how it travels: the content store, registries, credentials, compression.

Come in by the submodule that is needed; each costs its import only where it is used:

    store          ImageStore: an OCI layout, names and blobs      ingest    a blob on its way in, verified, resumed
    remote         from a name to registries: mirrors, trust       registry  one registry, distribution-spec 1.1
    download       a blob's bytes in order, however they come      upload    blobs into a registry
    authorization  answers to challenges, tokens                   auth      Docker's config.json and its helpers
    configuration  registries.toml                                 http      connections, TLS, proxies, stalls
    compression    gzip, zstd and plain, bounded

Digest (of what travels, usually compressed) and diff_id (of the plain tar) are never mixed: what is compressed
is this room's business, what is plain is storage's.
"""
