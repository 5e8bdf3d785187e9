"""Machines: mini-guests on this host's /dev/kvm, whole systems in the lab."""
