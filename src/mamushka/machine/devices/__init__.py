"""What stands on a machine's buses. One folder each, all alike; none knows an architecture.

    power/, serial/     registers at ports: they answer at once
    virtio/             devices behind queues, on the transport that they share (virtio/mmio.py)
    sink.py             where what a guest says goes

**Two kinds.** What must answer while the guest waits implements ``Registers`` (bus.py): it is called by the threads of
virtual CPUs, several at once, guards its few fields by a lock, never waits, and hands anything that takes time to the
loop. What the guest talks to through queues is a ``Device`` (virtio/device.py): everything but its constructor is
called in the loop's thread, one call after the other, so that it needs no lock at all.

**How a virtio device is written.** A folder whose ``__init__`` is the door, a class that says what it is
(``device_id``, ``queues``, ``features``) and then what it does:

    start(queues, features, loop)   the driver is there. Keep the queues, ``loop.watch`` the host's descriptors
    notify(index)                   for chain in queue.serve(): read, write, queue.push(chain, written); queue.signal()
    ready(events)                   a descriptor of the host is ready: the same, from the other side
    stop()                          forget both. A ``start`` may follow; so may the end
    save() restore(state)           what is neither in the guest's memory nor in the configuration. The device goes on
    close()                         the host's resources that the constructor was given

**What it may assume.** Between two of its calls no other device runs, and nobody looks at its state. A chain's buffers
lie in memory, what is read comes before what is written, a chain is no longer than its ring. The memory stays until
``stop`` has returned: who has threads of his own waits for them there.

**What it may not.** The guest writes while we read: each field is read once, then checked, then used. Lengths are
whatever 32 bits can say, buffers may overlap, a head may come twice, a chain may be empty. So each number has a bound
with its reason beside it, work for one ``notify`` is one ring at most (``serve`` sees to it), and what breaks a rule is
GuestFault, which ends this machine alone. The host is no friend either: a descriptor may be full, or gone; a device
that waits, lets all others wait. Nothing blocks: what cannot be done without is given to a thread (pmem's flush).

**A chain that cannot be finished now** is put back (``queue.unpop``), with what was done of it kept as a number. Then
nothing is held, and a machine can be saved at any time: rings and numbers are all there is.

**Back ends elsewhere.** A device may let the kernel or another process serve a queue: it passes ``queue.bell`` and
``queue.line.fd`` on and sets ``queue.carried``, and the loop does not listen to that bell. The transport is made for
it: its interrupt status is right without anybody setting it.

Each device has a target in tests/fuzz, and a driver in its tests that does as Linux does (tests/virtio.py).
"""
