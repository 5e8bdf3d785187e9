"""Published formats as frozen values, without I/O: parsed once where they enter, bounded, their bytes kept.

reference     image names, Docker's grammar        digest        algorithm:hex, verified
image         manifests, indexes, configs          platform      os/architecture/variant, and which runs where
distribution  a registry's words                   runtime       a bundle's config.json (codec: how it is read)
tar           archives as a stream                 tar_write     their headers as they are written
"""
