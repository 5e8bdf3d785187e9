"""The devices of VIRTIO 1.2, and the transport that they share."""
