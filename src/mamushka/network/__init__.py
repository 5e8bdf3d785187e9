"""Wires and addresses: values in, kernel state out. What exists is remembered elsewhere, in the engine.

namespace   a network namespace as a descriptor       firewall   our one nftables table
bridge      a network's switch on this host           portmap    published ports in it
endpoint    a workload's wire into a network          ipam       which subnet, which address
tap         a machine's wire into a namespace
responder   names for a network's members             reconcile  what nobody needs any more, goes
"""
