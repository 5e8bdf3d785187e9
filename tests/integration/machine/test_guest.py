"""The guest's first process, run for real: what holds behind the container wall holds for it."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from mamushka.container.seccomp import filter as compile_filter
from mamushka.errors import MamushkaError, NotFound, Unavailable
from mamushka.guest import build
from mamushka.machine.agent import nodes, settings, words
from mamushka.runtime import CannotExecute, CommandNotFound, Exit, NotRunning
from mamushka.spec.runtime import Box, Capabilities, Config, Device, Linux, Mount, Rlimit, Seccomp, SyscallRule, User
from tests.guests import PATH, Guest

SIZE_MAX = 100_000  # of the stripped program: it waits in the memory of every machine


def test_its_size_and_its_bytes(agent_program: str, tmp_path: Path) -> None:
    command = build.compiler(platform.machine())
    again = build.build(platform.machine(), str(tmp_path))
    assert Path(again).read_bytes() == Path(agent_program).read_bytes()
    assert Path(again).read_bytes().endswith(f"{build.MARK}{build.digest()}".encode())
    if "ziglang" in command:
        assert os.path.getsize(agent_program) < SIZE_MAX


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["aarch64", "riscv64"])
def test_its_size_for_other_machines(machine: str, tmp_path: Path) -> None:
    if not build.compiler(machine):
        pytest.skip("ziglang is missing: pip install ziglang")
    made = Path(build.build(machine, str(tmp_path)))
    assert made.stat().st_size < SIZE_MAX
    assert made.read_bytes()[:5] == b"\x7fELF\x02"


@pytest.mark.parametrize(
    ("script", "exit"),
    [("exit 0", Exit(0)), ("exit 3", Exit(3)), ("exit 255", Exit(255)), ("sh -c 'kill -9 $$'; exit $?", Exit(137))],
)
def test_exit_statuses(guest: Guest, script: str, exit: Exit) -> None:
    assert guest.run(script)[0] == exit


def test_streams(guest: Guest) -> None:
    exit, said = guest.run("cat; echo err >&2; exit 4", given=b"in\n")
    assert (exit, said) == (Exit(4), "in\nerr\n")


def test_much_in_and_out_is_whole(guest: Guest) -> None:
    assert guest.run("cat | cat", given=b"0123456789abcdef" * 200_000)[1] == "0123456789abcdef" * 200_000


def test_the_end_is_told_after_all_output(guest: Guest) -> None:
    for _ in range(5):
        assert len(guest.run("dd if=/dev/zero bs=65536 count=40 2>/dev/null")[1]) == 40 * 65536


def test_a_reader_that_does_not_read_holds_only_its_writer(guest: Guest) -> None:
    out_r, out_w = os.pipe()
    name, ended = guest.create(guest.process_of("dd if=/dev/zero bs=65536 count=64"), (-1, out_w, -1))
    os.close(out_w)
    guest.agent.start(name)
    assert guest.run("echo beside")[1] == "beside\n"
    with pytest.raises(Unavailable):
        ended.result(0.3)
    size = 0
    while data := os.read(out_r, 1 << 16):
        size += len(data)
    os.close(out_r)
    assert size == 64 * 65536
    assert ended.result(10) == Exit(0)
    guest.agent.delete(name)


@pytest.mark.parametrize(
    ("words", "kind"),
    [(("nothing",), CommandNotFound), (("/bin/nothing",), CommandNotFound), (("/etc",), CannotExecute),
     (("/etc/passwd",), CannotExecute), (("passwd",), CommandNotFound)],
)  # fmt: skip
def test_programs_that_cannot_run(guest: Guest, words: tuple[str, ...], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=words[0]):
        guest.run(*words, "x")


def test_a_missing_interpreter_and_a_wrong_format(guest: Guest) -> None:
    for name, text in (("script", "#!/no/such\n"), ("garbage", "\x7fnothing")):
        Path(f"{guest.rootfs}/bin/{name}").write_text(text)
        os.chmod(f"{guest.rootfs}/bin/{name}", 0o755)
    with pytest.raises(CommandNotFound):
        guest.run("script", "x")
    with pytest.raises(CannotExecute, match="exec format error"):
        guest.run("garbage", "x")


def test_working_directories(guest: Guest) -> None:
    assert (
        guest.run("pwd; stat -c %u .", cwd="/made/for/it", user=User(uid=1000, gid=1000))[1] == "/made/for/it\n1000\n"
    )
    with pytest.raises(CannotExecute, match="chdir to cwd"):
        guest.run("pwd", cwd="/etc/passwd")


def test_environment_and_home(guest: Guest) -> None:
    _, said = guest.run("env", env=(PATH, "A=b c"), user=User(uid=1000, gid=1000))
    assert {"A=b c", "HOME=/home/somebody", PATH} <= set(said.splitlines())


def test_identity_and_mask(guest: Guest) -> None:
    user = User(uid=1000, gid=1001, additional_gids=(5, 4294967294), umask=0o027)
    said = guest.run("id -u; id -g; id -G; umask", user=user)[1]
    assert said.split() == ["1000", "1001", "1001", "5", "4294967294", "0027"]


def test_capabilities_limits_and_the_rest(guest: Guest) -> None:
    kept = ("CAP_CHOWN", "CAP_NET_BIND_SERVICE")
    said = guest.run(
        "grep -E '^(Cap|NoNew)' /proc/self/status; ulimit -n; ulimit -H -n; cat /proc/self/oom_score_adj",
        user=User(uid=1000, gid=1000),
        capabilities=Capabilities(kept, kept, kept, kept, ("CAP_CHOWN",)),
        no_new_privileges=True,
        rlimits=(Rlimit("RLIMIT_NOFILE", 99, 77),),
        oom_score_adj=123,
    )[1]
    words = said.split()
    found = dict(zip(words[:12:2], words[1:12:2], strict=True))
    both, one = f"{(1 << 0) | (1 << 10):016x}", f"{1:016x}"
    assert found["CapBnd:"] == found["CapPrm:"] == found["CapEff:"] or found["CapEff:"] == one
    assert found["CapBnd:"] == both
    assert found["CapAmb:"] == one
    assert found["NoNewPrivs:"] == "1"
    assert words[12:] == ["77", "99", "123"]


def test_a_filter(guest: Guest) -> None:
    rules = (SyscallRule(("mkdir", "mkdirat"), "SCMP_ACT_ERRNO", 95),)
    made = compile_filter(Seccomp("SCMP_ACT_ALLOW", syscalls=rules))
    said = guest.run("mkdir /tmp/x 2>&1; touch /tmp/y && echo fine", filter=made)[1] if _has(guest, "mkdir") else "fine"
    assert "fine" in said
    assert guest.run("grep Seccomp: /proc/self/status", filter=made)[1].split() == ["Seccomp:", "2"]


def _has(guest: Guest, name: str) -> bool:
    os.symlink("busybox", f"{guest.rootfs}/bin/{name}")
    return True


def test_the_agent_cannot_be_seen(guest: Guest) -> None:
    said = guest.run("ps; mount; hostname; ls -l /proc/1/exe; ls /proc/self/fd", hostname="inside")[1]
    assert "init" not in said
    assert guest.rootfs not in said
    assert "inside" in said
    assert said.split()[-4:] == ["0", "1", "2", "3"]


def test_masks_readonly_paths_and_nodes(guest: Guest) -> None:
    linux = Linux(masked_paths=("/proc/keys", "/proc/acpi", "/no"), readonly_paths=("/proc/sys", "/no"))
    said = guest.run("cat /proc/keys; echo 1 2>&1 > /proc/sys/kernel/panic; ls -l /dev/null /dev/fd; wc -c < /dev/null",
                     linux=linux)[1]  # fmt: skip
    assert "Read-only" in said
    assert "1,   3" in said


def test_what_masks_is_mounted_as_behind_the_other_wall(guest: Guest) -> None:
    linux = Linux(masked_paths=("/proc/keys", "/proc/fs"))
    said = guest.run("grep -E '/proc/(keys|fs) ' /proc/mounts; ls /proc/fs | wc -l; cat /proc/keys", linux=linux)[1]
    masked = {line.split()[1]: line.split() for line in said.splitlines() if line.count(" ") > 2}
    assert masked["/proc/fs"][:4:2] == ["none", "tmpfs"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= {*masked["/proc/fs"][3].split(",")}
    # By the null device of the container's own /dev, which is a tmpfs.
    assert masked["/proc/keys"][2] == "tmpfs" and said.endswith("\n0\n"), said


def test_a_link_of_the_image_leads_nowhere_else(guest: Guest, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(str(outside), f"{guest.rootfs}/evil")
    os.makedirs(f"{guest.rootfs}{outside}")
    steps = [settings.file("/evil/file", b"x"), settings.mount("/evil/mounted", "tmpfs", "tmpfs")]
    guest.run("true", steps=steps)
    assert list(outside.iterdir()) == []
    assert Path(f"{guest.rootfs}{outside}/file").exists()


def test_a_tmpfs_that_starts_with_what_was_there(guest: Guest) -> None:
    """As podman asks for, with --tmpfs and with --read-only."""
    deep = f"{guest.rootfs}/full/deep"
    os.makedirs(deep)
    os.chmod(deep, 0o750)
    os.chown(deep, 7, 8)
    for name in ("file", "private"):
        with open(f"{deep}/{name}", "w") as file:
            file.write(name)
        os.chmod(f"{deep}/{name}", 0o600 if name == "private" else 0o4755)
    os.symlink("/etc/passwd", f"{deep}/link")
    os.mkfifo(f"{deep}/fifo")
    item = Mount("/full", "tmpfs", "tmpfs", ("tmpcopyup", "size=1m", "ro", "nosuid"))
    said = guest.run(
        "cd /full/deep; stat -c '%n %a %u:%g' . *; cat file private; readlink link; grep /full /proc/mounts",
        steps=settings.container_steps(Config("1.0.0", mounts=(item,)), {}),
    )[1].splitlines()
    assert said[:4] == [". 750 7:8", "file 4755 0:0", "link 777 0:0", "private 600 0:0"]
    assert said[4] == "fileprivate/etc/passwd"
    assert said[5].startswith("tmpfs /full tmpfs ro,nosuid,") and "size=1024k" in said[5]


def test_exec_is_in_the_same_place(guest: Guest) -> None:
    container, ended = guest.sleeper()
    exit, said = guest.exec(container, "ps; cat; exit 9", given=b"given")
    assert exit == Exit(9)
    assert said.endswith("given")
    assert "sleep 1000" in said
    with pytest.raises(CommandNotFound):
        guest.exec(container, "nothing", "x")
    assert guest.exec(container, "id", "-u", user=User(uid=7))[1] == "7\n"
    assert guest.end(container, ended) == Exit(signal=9)
    with pytest.raises(NotRunning):
        guest.exec(container, "true")


def test_a_daemon_of_execs_does_not_hold_up_its_end(guest: Guest) -> None:
    container, ended = guest.sleeper()
    began = time.monotonic()
    exit, said = guest.exec(container, "sleep 30 & echo started; exit 5")
    assert (exit, said) == (Exit(5), "started\n")
    assert time.monotonic() - began < 20
    guest.end(container, ended)


def test_signals(guest: Guest) -> None:
    with_trap = guest.process_of("trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done")
    out_r, out_w = os.pipe()
    name, ended = guest.create(with_trap, (-1, out_w, -1))
    os.close(out_w)
    guest.agent.start(name)
    assert os.read(out_r, 100) == b"ready\n"
    guest.agent.kill(name, signal.SIGTERM)
    assert ended.result(10) == Exit(42)
    with pytest.raises(NotRunning):
        guest.agent.kill(name, signal.SIGTERM)
    os.close(out_r)
    guest.agent.delete(name)


def test_signals_to_all(guest: Guest) -> None:
    if not guest.agent.channel.cgroups:
        pytest.skip("cgroup v2 is not mounted")
    name, ended = guest.create(guest.process_of("sleep 100 & sleep 100"))
    guest.agent.start(name)
    guest.agent.kill(name, signal.SIGKILL, all=True)
    assert ended.result(10) == Exit(signal=9)
    guest.agent.delete(name)


def test_a_terminal(guest: Guest) -> None:
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    process = guest.process_of(
        "tty; stty size; ls -l /dev/console; read x; stty size; exit 6", terminal=True, console_size=Box(33, 44)
    )
    name, ended = guest.create(process, (in_r, out_w, -1))
    os.close(out_w)
    guest.agent.start(name)
    said = b""
    while b"console" not in said:
        said += os.read(out_r, 1000)
    guest.agent.resize(name, 50, 60)
    os.write(in_w, b"x\n")
    assert ended.result(10) == Exit(6)
    said += os.read(out_r, 1000)
    assert b"/dev/pts/0\r\n33 44\r\n" in said
    assert b"50 60\r\n" in said
    guest.agent.delete(name)
    for descriptor in (in_r, in_w, out_r):
        os.close(descriptor)


def test_control_c_on_a_terminal(guest: Guest) -> None:
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    container, held = guest.sleeper()
    made = settings.process_settings(guest.process_of("echo go; sleep 100; exit 1", terminal=True))
    ended = guest.agent.exec(guest.name(), container, made, stdio=(in_r, out_w, -1), terminal=True)
    assert os.read(out_r, 100) == b"go\r\n"
    time.sleep(0.1)
    os.write(in_w, b"\x03")
    assert ended.result(10).status == 130
    guest.end(container, held)
    for descriptor in (in_r, in_w, out_r, out_w):
        os.close(descriptor)


def test_created_and_not_started(guest: Guest) -> None:
    name, ended = guest.create(guest.process_of("exit 1"))
    with pytest.raises(Unavailable):
        ended.result(0.2)
    guest.agent.kill(name, signal.SIGKILL)
    assert ended.result(10) == Exit(signal=9)
    with pytest.raises(NotRunning):
        guest.agent.start(name)
    guest.agent.delete(name)


def test_freeze_processes_and_reading(guest: Guest) -> None:
    if not guest.agent.channel.cgroups:
        pytest.skip("cgroup v2 is not mounted")
    container, ended = guest.sleeper()
    guest.agent.freeze(container, True)
    assert "frozen 1" in guest.agent.read(["cgroup.events"], container)["cgroup.events"]
    guest.agent.freeze(container, False)
    (one,) = guest.agent.processes(container)
    assert one.number(words.K_INNER) == 1
    assert one.get(words.K_DATA) == b"sleep\x001000\x00"
    assert guest.agent.read(["no.such", "/proc/net/dev"], container).keys() == {"/proc/net/dev"}
    with pytest.raises(MamushkaError):
        guest.agent.read(["../cgroup.procs"], container)
    with pytest.raises(MamushkaError):
        guest.agent.update(container, {"cgroup.procs": "1"})
    guest.end(container, ended)


def test_files(guest: Guest, tmp_path: Path) -> None:
    container, ended = guest.sleeper()
    content = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("w+b") as sink:
        guest.agent.write_file("/tmp/../tmp/f", source.fileno(), 0o640, 5, 6, container)
        about = guest.agent.read_file("/tmp/f", sink.fileno(), container)
    assert (tmp_path / "out").read_bytes() == content
    assert [about.number(key) for key in (words.K_MODE, words.K_UID, words.K_GID, words.K_SIZE)] == [
        0o100640, 5, 6, len(content),
    ]  # fmt: skip
    listed = {item.text(words.K_NAME): item for item in guest.agent.list_files("/bin", container)}
    assert listed[""].number(words.K_MODE) & 0o170000 == 0o040000
    assert listed["sh"].text(words.K_SOURCE) == "busybox"
    with pytest.raises(NotFound), (tmp_path / "out").open("wb") as sink:
        guest.agent.read_file("/nothing", sink.fileno(), container)
    with pytest.raises(OSError, match="Is a directory"), (tmp_path / "out").open("wb") as sink:
        guest.agent.read_file("/bin", sink.fileno(), container)
    guest.end(container, ended)


def test_all_devices_of_the_kernel(guest: Guest) -> None:
    config = Config("1.0.0", linux=Linux(devices=settings.EVERY))
    found = {device.path: device for device in nodes.equipped(config, guest.agent).linux.devices}
    assert found["/dev/null"] == Device("/dev/null", "c", 1, 3, 0o666, 0, 0)
    assert not {"/dev/ptmx", "/dev/console", "/dev/every"} & found.keys()
    assert len(found) > 5 and all(path.startswith("/dev/") for path in found)
    plain = Config("1.0.0")
    assert nodes.equipped(plain, guest.agent) is plain


def test_the_network(guest: Guest) -> None:
    links = [settings.link(
        name="lo", mtu=40000, addresses=[(bytes([10, 1, 2, 3]), 24), (bytes([0xFD] + [0] * 14 + [9]), 64)],
        routes=[(bytes([10, 77, 0, 0]), 16, b"")],
    )]  # fmt: skip
    guest.agent.network(links)
    guest.agent.network(links)  # and again: replaced, not refused
    read = guest.agent.read(["/proc/net/route", "/proc/net/if_inet6", "/proc/net/dev", "/proc/net/fib_trie"])
    assert "lo\t00004D0A" in read["/proc/net/route"]
    assert "fd000000000000000000000000000009" in read["/proc/net/if_inet6"]
    assert "10.1.2.3" in read["/proc/net/fib_trie"]
    with pytest.raises(OSError, match="find the link"):
        guest.agent.network([settings.link(mac=bytes(5) + b"\7")])


def test_a_link_that_gets_a_name_has_no_address_of_before(guest: Guest) -> None:
    """A guest that goes on elsewhere has another's: all of them, more than are taken away at a time."""
    before = [(bytes([10, 1, 2, number]), 24) for number in range(1, 41)]
    before.append((bytes([0xFD] + [0] * 14 + [9]), 64))
    guest.agent.network([settings.link(name="lo", addresses=before)])
    assert "10.1.2.40" in guest.agent.read(["/proc/net/fib_trie"])["/proc/net/fib_trie"]
    guest.agent.network([settings.link(name="lo", new_name="lo", addresses=[(bytes([10, 5, 6, 7]), 24)])])
    read = guest.agent.read(["/proc/net/fib_trie", "/proc/net/if_inet6"])
    assert "10.5.6.7" in read["/proc/net/fib_trie"] and "10.1.2" not in read["/proc/net/fib_trie"]
    assert "fd0000" not in read["/proc/net/if_inet6"]


def test_names_are_asked_of_the_host(guest: Guest) -> None:
    """Each program gets its own answers, also after a connection that was lost."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{guest.path}.53")
    listener.listen()
    ids: list[bytes] = []
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                while True:
                    question = lines.read(int.from_bytes(lines.read(2), "big"))
                    if not question:
                        break
                    ids.append(question[:2])
                    known = question[-4:-2] == b"\0\1"  # A, not AAAA
                    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes((10, 9, 8, question[13] - ord("a")))
                    answer = question[:2] + b"\x81\x80\0\1" + bytes((0, known)) + bytes(4) + question[12:]
                    answer += record if known else b""
                    connection.sendall(len(answer).to_bytes(2, "big") + answer)
                    if question[13] == ord("a") and not known:
                        break  # hang up

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    guest.agent.network([], resolver=53)
    ask = "timeout 20 busybox nslookup {}.test 127.0.0.11 2>&1"
    assert "10.9.8.0" in guest.run(ask.format("a"))[1]
    time.sleep(0.2)
    said = guest.run(" & ".join(ask.format(name) for name in "bcdefg") + "; wait")[1]
    assert [number for number in range(1, 7) if f"10.9.8.{number}" not in said] == []
    assert len(set(ids)) == len(ids)  # whatever ids the programs chose
    ended.set()
    guest.process.kill()
    server.join(10)
    listener.close()


def test_names_are_asked_of_the_host_over_tcp(guest: Guest) -> None:
    """Each program has a connection of its own; one that asks no more still gets its answer, of any length."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{guest.path}.54")
    listener.listen()
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            question = lines.read()  # to its end: the program says nothing more
            asked.append(question)
            connection.sendall(question * 5000)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    guest.agent.network([], resolver=53)
    ask = "printf question{} | timeout 20 busybox nc 127.0.0.11 53 | md5sum"
    said = guest.run(" & ".join(ask.format(number) for number in range(8)) + "; wait")[1]
    wanted = [hashlib.md5(b"question%d" % number * 5000).hexdigest() for number in range(8)]
    assert sorted(said.split()[::2]) == sorted(wanted)
    assert sorted(asked) == [b"question%d" % number for number in range(8)]
    # A flood: more at once than there may be, none of which says anything. Others are served when it is over.
    flood = " & ".join(["sleep 1 | timeout 2 busybox nc 127.0.0.11 53"] * 40)
    said = guest.run(f"{flood}; wait; {ask.format(9)}")[1]
    assert said.split()[0] == hashlib.md5(b"question9" * 5000).hexdigest()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_steps_in_a_container(guest: Guest) -> None:
    container, ended = guest.sleeper()
    guest.agent.steps(
        [settings.step(words.HOSTNAME, "renewed"), settings.file("/etc/machine-id", b"0123\n"),
         settings.mount("/late", "tmpfs", "tmpfs")],
        container,
    )  # fmt: skip
    said = guest.exec(container, "hostname; cat /etc/machine-id; mount")[1]
    assert said.startswith("renewed\n0123\n")
    assert "tmpfs on /late" in said
    with pytest.raises(OSError, match="wait for"):
        guest.agent.steps([settings.wait_for("/dev/none", 0.02)])
    guest.end(container, ended)


def test_a_host_that_comes_back_goes_on(guest: Guest) -> None:
    """As after a restore: all connections break, the agent calls again, and nothing that runs notices."""
    out = os.memfd_create("out")
    script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; exit 7"
    name, ended = guest.create(guest.process_of(script), (-1, out, -1))
    guest.agent.start(name)
    time.sleep(0.1)
    secret = guest.agent.channel.token
    guest.agent.hello = None
    guest.loop.call(lambda: guest.agent._drop(name))
    guest.loop.call(guest.agent.channel._lost)
    deadline = time.monotonic() + 10
    while guest.agent.hello is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert guest.agent.hello is not None
    assert guest.agent.hello.token == secret, "it proves that it is the same"
    assert guest.agent.channel.token != secret, "and is told another secret: one that was cloned knows the old one"
    time.sleep(0.1)
    guest.agent.attach(name, words.STDOUT, -1, out)
    assert ended.result(20) == Exit(7)
    assert os.pread(out, 4000, 0).splitlines()[-1] == b"line 39"
    os.close(out)
    guest.agent.delete(name)


def test_many_at_once(guest: Guest) -> None:
    container, ended = guest.sleeper()
    results: list[tuple[Exit, str]] = []

    def one(number: int) -> None:
        results.append(guest.exec(container, f"echo {number}; exit {number}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((exit.code, said) for exit, said in results) == [(n, f"{n}\n") for n in range(16)]
    guest.end(container, ended)


def test_entropy_and_power_off(guest: Guest) -> None:
    guest.agent.renew(os.urandom(64))
    guest.agent.sync()
    guest.agent.power_off()
    assert guest.process.wait(10) == 0


def test_without_a_host_it_ends(guest: Guest) -> None:
    guest.loop.call(guest.close_door)
    guest.loop.call(guest.agent.channel.close)
    assert guest.process.wait(20) == 0
