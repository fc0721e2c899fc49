"""Power cuts, replayed: what a cell wrote is recorded with strace, and its folders are built anew as a disk may hold
them when power fails at some moment. Whatever was acknowledged before that moment must be there.

The disk that is played here is a mean one, though a possible one:

- Bytes written to a file are safe once the file was synced (fsync, fdatasync) or everything was (syncfs), after they
  were written. Any other write is kept, lost or cut off in its middle, each by itself.
- A name in a folder (made, linked, renamed, removed) is safe once that folder was synced, or everything was. Of the
  others a folder keeps the first few, in their order; folders know nothing of each other. A rename belongs to the
  folder into which it goes.

Usage: replay.py GROVE WORKDIR CUTS SEED. Prints one line for each thing that it did; exit code 1 if anything was lost.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

TRACED = (
    "openat,open,creat,close,dup,dup2,dup3,fcntl,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "copy_file_range,sendfile,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,"
    "mkdirat,fsync,fdatasync,syncfs,sync,lseek,mmap,clone,clone3"
)
SYNCS = {"fsync", "fdatasync", "syncfs", "sync"}
DEADLINE_S = 120


# ---- What the kernel was asked ----


class Call:
    """One system call: its lines in the record, when it began and ended, and what came of it."""

    def __init__(self, tid, name, began, at):
        self.tid, self.name, self.began, self.at = tid, name, began, at
        self.text, self.ended, self.value = "", None, None


LINE = re.compile(rb"^(\d+) +(\d+\.\d+) (.*)$", re.S)


def read_calls(path):
    """All calls that ended well, in the order in which they took effect: when they ended; of `close` when it began,
    since another thread may be given the number again before the end of it is written down."""
    begun, calls = {}, []
    with open(path, "rb") as record:
        for number, line in enumerate(record):
            match = LINE.match(line.rstrip(b"\n"))
            if not match:
                continue
            tid, at, rest = match[1], float(match[2]), match[3].decode("ascii")
            if rest.startswith(("+++", "---")):
                continue
            if rest.startswith("<... "):
                call = begun.pop(tid, None)
                if call is None:
                    continue
                call.text += rest.split("resumed>", 1)[1]
            else:
                name, _, text = rest.partition("(")
                call = Call(tid, name, number, at)
                call.text = text
                if text.endswith("<unfinished ...>"):
                    call.text = text[: -len("<unfinished ...>")]
                    begun[tid] = call
                    continue
            call.ended, call.ended_at = number, at
            head, _, value = call.text.rpartition(" = ")
            call.value = value.split()[0] if value else "?"
            call.text = head.rstrip()
            if call.text.endswith(")"):
                call.text = call.text[:-1]
            calls.append(call)
    well = [call for call in calls if not call.value.startswith(("-", "?"))]
    return sorted(well, key=lambda call: call.began if call.name == "close" else call.ended)


def arguments(text):
    """Splits the arguments of a call at the commas outside of strings and brackets."""
    parts, depth, is_in, start = [], 0, False, 0
    if '"' not in text and "[" not in text and "{" not in text:
        return [part.strip() for part in text.split(",")]
    position = 0
    while position < len(text):
        letter = text[position]
        if letter == '"':
            # Strings are hexadecimal throughout, so there is no quote within.
            position = text.index('"', position + 1)
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
        position += 1
    parts.append(text[start:].strip())
    return parts


def string(argument):
    first = argument.index('"') + 1
    last = argument.index('"', first)
    assert not argument[last + 1 :].startswith("..."), "strace must show strings whole"
    return bytes.fromhex(argument[first:last].replace("\\x", ""))


def strings(argument):
    return b"".join(bytes.fromhex(found.replace("\\x", "")) for found in re.findall(r'"([^"]*)"', argument))


# ---- The disk ----


class File:
    def __init__(self, content=b"", kind="file", mode=0o600):
        self.kind, self.mode = kind, mode
        # What was there before the record, and (began, ended, how, ...) since.
        self.content, self.changes = content, []
        # Of a folder.
        self.names, self.moves = {}, []
        # (began, ended) of syncs of this one.
        self.syncs = []


class Disk:
    """Files and folders below one folder, with all that was done to them."""

    def __init__(self, root):
        self.root = os.fsencode(root)
        self.top = self.load(self.root)
        self.syncs = []

    def load(self, path):
        mode = os.lstat(path).st_mode & 0o7777
        if os.path.islink(path):
            return File(os.readlink(path), "link", mode)
        if not os.path.isdir(path):
            # A socket is of no interest, and not kept by a restart.
            if not os.path.isfile(path):
                return File(b"", "other", mode)
            with open(path, "rb") as file:
                return File(file.read(), "file", mode)
        folder = File(b"", "folder", mode)
        for name in os.listdir(path):
            folder.names[name] = self.load(os.path.join(path, name))
        folder.first = dict(folder.names)
        return folder

    def find(self, path):
        """The folder and the name of a path, or None if it is not below the root."""
        path = os.path.normpath(path)
        if path == self.root:
            return None, b""
        if not path.startswith(self.root + b"/"):
            return None
        at, parts = self.top, path[len(self.root) + 1 :].split(b"/")
        for part in parts[:-1]:
            at = at.names.get(part)
            if at is None or at.kind != "folder":
                return None
        return at, parts[-1]

    def get(self, path):
        found = self.find(path)
        if found is None:
            return None
        folder, name = found
        return self.top if folder is None else folder.names.get(name)

    def move(self, call, folder, name, file, gone=None):
        """A name now means `file` (None: nothing); with a rename `gone` = (folder, name) means nothing any more."""
        folder.moves.append((call.began, call.ended, name, file, gone))
        if file is None:
            folder.names.pop(name, None)
        else:
            folder.names[name] = file
        if gone:
            gone[0].names.pop(gone[1], None)


class Player:
    """Follows the calls of one process and notes on the disk what they did."""

    def __init__(self, disk):
        self.disk, self.fds = disk, {}
        self.counts = {}

    def path(self, dirfd, argument):
        text = string(argument)
        if text.startswith(b"/"):
            return text
        if dirfd == "AT_FDCWD":
            return b"/nowhere/" + text
        base = self.fds.get(int(dirfd))
        return os.path.join(base["path"], text) if base else b"/nowhere/" + text

    def file(self, fd):
        entry = self.fds.get(int(fd))
        return entry["file"] if entry else None

    def play(self, call):
        doer = getattr(self, "do_" + call.name, None)
        if doer:
            doer(call, arguments(call.text))

    def note(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    # Descriptors

    def opened(self, call, path, flags, mode):
        fd = int(call.value)
        file = self.disk.get(path)
        found = self.disk.find(path)
        if file is None and "O_CREAT" in flags and found:
            file = File(b"", "file", mode)
            self.disk.move(call, *found, file)
            self.note("files made")
        if file is not None and "O_TRUNC" in flags and file.kind == "file":
            file.changes.append((call.began, call.ended, "size", 0))
        self.fds[fd] = {"file": file, "path": path, "at": 0, "append": "O_APPEND" in flags}

    def do_openat(self, call, args):
        mode, path = int(args[3], 8) if len(args) > 3 else 0o600, self.path(args[0], args[1])
        if "O_TMPFILE" not in args[2]:
            self.opened(call, path, args[2], mode)
            return
        # It has no name until it is linked, and is gone if that does not happen.
        if self.disk.get(path) is not None:
            file = File(b"", "file", mode)
            self.fds[int(call.value)] = {"file": file, "path": b"", "at": 0, "append": False}

    def do_close(self, call, args):
        self.fds.pop(int(args[0]), None)

    def do_dup(self, call, args):
        if int(args[0]) in self.fds:
            self.fds[int(call.value)] = self.fds[int(args[0])]

    def do_fcntl(self, call, args):
        if args[1].startswith("F_DUPFD"):
            self.do_dup(call, args)

    def do_mmap(self, call, args):
        if len(args) > 4 and "MAP_SHARED" in args[3] and "PROT_WRITE" in args[2] and args[4] != "-1":
            # SQLite's index of its log, made anew by whoever opens the database first.
            is_index = int(args[4]) in self.fds and self.fds[int(args[4])]["path"].endswith(b"-shm")
            assert is_index or self.file(args[4]) is None, "a file is written through memory, which is not recorded"

    # Bytes

    def size(self, file):
        size = len(file.content)
        for change in file.changes:
            if change[2] == "size":
                size = change[3]
            else:
                size = max(size, change[3] + len(change[4]))
        return size

    def wrote(self, call, fd, at, data):
        file = self.file(fd)
        if file is None or file.kind != "file":
            return
        entry = self.fds[int(fd)]
        if at is None:
            at = self.size(file) if entry["append"] else entry["at"]
            entry["at"] = at + len(data)
        file.changes.append((call.began, call.ended, "bytes", at, data))
        self.note("writes")

    def do_write(self, call, args):
        if self.file(args[0]) is not None:
            self.wrote(call, args[0], None, string(args[1])[: int(call.value)])

    def do_writev(self, call, args):
        if self.file(args[0]) is not None:
            self.wrote(call, args[0], None, strings(args[1])[: int(call.value)])

    def do_pwrite64(self, call, args):
        if self.file(args[0]) is not None:
            self.wrote(call, args[0], int(args[3]), string(args[1])[: int(call.value)])

    def do_lseek(self, call, args):
        if int(args[0]) in self.fds:
            self.fds[int(args[0])]["at"] = int(call.value)

    def do_ftruncate(self, call, args):
        file = self.file(args[0])
        if file is not None:
            file.changes.append((call.began, call.ended, "size", int(args[1])))

    def do_fallocate(self, call, args):
        assert self.file(args[0]) is None or "PUNCH_HOLE" in args[1] or "KEEP_SIZE" in args[1]

    def do_copy_file_range(self, call, args):
        """Data come from a file outside that does not change."""
        count, target = int(call.value), self.file(args[2])
        if target is None or count == 0:
            return
        assert args[1] == "NULL" and args[3] == "NULL"
        source = self.fds[int(args[0])]
        with open(source["path"], "rb") as file:
            file.seek(source["at"])
            data = file.read(count)
        assert len(data) == count
        source["at"] += count
        self.wrote(call, args[2], None, data)

    def do_pwritev(self, call, args):
        if self.file(args[0]) is not None:
            self.wrote(call, args[0], int(args[3]), strings(args[1])[: int(call.value)])

    def do_unknown(self, call, args):
        assert self.file(args[0]) is None, f"{call.name} is not understood"

    do_pwritev2 = do_sendfile = do_unknown

    # Names

    def renamed(self, call, old, new, flags=""):
        assert "EXCHANGE" not in flags
        source, target = self.disk.find(old), self.disk.find(new)
        if source is None and target is None:
            return
        assert source is not None and target is not None, "a rename into or out of the disk"
        self.disk.move(call, *target, source[0].names[source[1]], source)
        self.note("renames")

    def do_rename(self, call, args):
        self.renamed(call, string(args[0]), string(args[1]))

    def do_renameat(self, call, args):
        self.renamed(call, self.path(args[0], args[1]), self.path(args[2], args[3]))

    def do_renameat2(self, call, args):
        self.renamed(call, self.path(args[0], args[1]), self.path(args[2], args[3]), args[4])

    def do_linkat(self, call, args):
        target = self.disk.find(self.path(args[2], args[3]))
        if target is None:
            return
        old = self.path(args[0], args[1])
        if old.startswith(b"/proc/"):
            file = self.fds[int(old.rsplit(b"/", 1)[1])]["file"]
        elif "AT_EMPTY_PATH" in args[4]:
            file = self.fds[int(args[0])]["file"]
        else:
            file = self.disk.get(old)
        assert file is not None
        self.disk.move(call, *target, file)
        self.note("links")

    def unlinked(self, call, path):
        found = self.disk.find(path)
        if found and found[0] is not None:
            self.disk.move(call, *found, None)
            self.note("removals")

    def do_unlink(self, call, args):
        self.unlinked(call, string(args[0]))

    do_rmdir = do_unlink

    def do_unlinkat(self, call, args):
        self.unlinked(call, self.path(args[0], args[1]))

    def made(self, call, path, mode):
        found = self.disk.find(path)
        if found and found[0] is not None:
            folder = File(b"", "folder", mode)
            folder.first = {}
            self.disk.move(call, *found, folder)

    def do_mkdir(self, call, args):
        self.made(call, string(args[0]), int(args[1], 8))

    def do_mkdirat(self, call, args):
        self.made(call, self.path(args[0], args[1]), int(args[2], 8))

    def do_symlinkat(self, call, args):
        found = self.disk.find(self.path(args[1], args[2]))
        if found:
            self.disk.move(call, *found, File(string(args[0]), "link"))

    # Syncs

    def do_fsync(self, call, args):
        file = self.file(args[0])
        if file is not None:
            file.syncs.append((call.began, call.ended))
            self.note("syncs of one")

    do_fdatasync = do_fsync

    def do_syncfs(self, call, args):
        self.disk.syncs.append((call.began, call.ended))
        self.note("syncs of all")


class Cut:
    """The disk as it may be when power fails after line `line` of the record."""

    def __init__(self, disk, line, chance, blind_to=None):
        self.disk, self.line, self.chance = disk, line, chance
        # How much of what was not synced is there: nothing, all, or any part.
        self.share = 0 if blind_to else chance.choice([0, 0, 0.3, 0.5, 0.8, 1])
        # Syncs of this kind of thing do nothing: a disk that lies, to see whether that would be found.
        self.blind_to = blind_to
        self.lost = 0

    def synced_up_to(self, file):
        """What ended before this line of the record is safe."""
        if file.kind == self.blind_to:
            return -1
        syncs = [sync[0] for sync in file.syncs + self.disk.syncs if sync[1] <= self.line]
        return max(syncs, default=-1)

    def content(self, file):
        safe, content = self.synced_up_to(file), bytearray(file.content)
        for change in file.changes:
            began, ended, how = change[:3]
            if began > self.line:
                break
            is_safe = ended < safe
            if not is_safe and self.chance.random() >= self.share:
                self.lost += 1
                continue
            if how == "size":
                size = change[3]
                content = content[:size] + bytes(max(0, size - len(content)))
                continue
            at, data = change[3:]
            if not is_safe and len(data) > 512 and self.chance.random() < 0.2:
                data = data[: self.chance.randrange(len(data) // 512) * 512]
                self.lost += 1
            content += bytes(max(0, at - len(content)))
            content[at : at + len(data)] = data
        return bytes(content)

    def names(self):
        """The names in each folder, by identity of the folder."""
        folders, everything = {}, [self.disk.top]
        seen = {id(self.disk.top)}
        while everything:
            folder = everything.pop()
            folders[id(folder)] = (folder, dict(folder.first))
            for file in list(folder.first.values()) + [move[3] for move in folder.moves]:
                if file is not None and file.kind == "folder" and id(file) not in seen:
                    seen.add(id(file))
                    everything.append(file)
        moves = []
        for folder, _ in folders.values():
            safe = self.synced_up_to(folder)
            done = [move for move in folder.moves if move[0] <= self.line]
            sure = sum(1 for move in done if move[1] < safe)
            kept = sure
            while kept < len(done) and self.chance.random() < (self.share or 0):
                kept += 1
            self.lost += len(done) - kept
            moves += [(move[1], folder, move) for move in done[:kept]]
        moves.sort(key=lambda entry: entry[0])
        for _, folder, (_, _, name, file, gone) in moves:
            names = folders[id(folder)][1]
            if gone:
                other = folders[id(gone[0])][1]
                # Something else may have this name by now.
                if other.get(gone[1]) is file:
                    del other[gone[1]]
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return folders

    def write(self, to):
        folders, written = self.names(), {}

        def put(file, path):
            if file.kind == "folder":
                os.mkdir(path, 0o700)
                for name, inner in folders[id(file)][1].items():
                    put(inner, os.path.join(path, name))
                os.chmod(path, file.mode | 0o700)
            elif id(file) in written:
                os.link(written[id(file)], path)
            elif file.kind == "link":
                os.symlink(file.content, path)
            elif file.kind == "file":
                written[id(file)] = path
                with open(path, "wb") as out:
                    out.write(self.content(file))
                os.chmod(path, file.mode & 0o777)

        put(self.disk.top, os.fsencode(to))


# ---- Cells ----


class Failed(Exception):
    pass


class Cell:
    def __init__(self, grove, folder, name):
        self.grove, self.folder, self.name = grove, folder, name
        self.port, self.process = 0, None

    def words(self, *words):
        dirs = ["--dir", f"{self.folder}/state", "--home", f"{self.folder}/home"]
        return [self.grove, *dirs, "--port", "0", "--peer-port", str(self.port), *words]

    def say(self, *words, ok=True):
        done = subprocess.run(self.words(*words), stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S)
        if ok and done.returncode != 0:
            raise Failed(f"grove {' '.join(words)}: {done.stderr.decode()}{done.stdout.decode()[:2000]}")
        return done

    def json(self, *words, ok=True):
        text = self.say(*words, "--json", ok=ok).stdout
        return json.loads(text) if text.strip() else {}

    def settings(self, **settings):
        path = f"{self.folder}/state/config.json"
        with open(path) as file:
            config = json.load(file)
        config.update({key.replace("__", "."): value for key, value in settings.items()})
        with open(path, "w") as file:
            json.dump(config, file)

    def start(self, record=None):
        self.port = self.port or free_port()
        words = self.words("run")
        if record:
            # `s`: strings whole.
            strace = ["strace", "-f", "-ttt", "-xx", "-s", str(64 << 20), "-e", f"trace={TRACED}", "-o", record]
            words = strace + words
        log = open(f"{self.folder}/log", "ab")
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(f"{self.name} answers", lambda: self.lock() and self.say("status", ok=False).returncode == 0)

    def lock(self):
        """What the running cell says of itself; an earlier one's word does not count."""
        try:
            with open(f"{self.folder}/state/lock") as file:
                lock = json.load(file)
        except (OSError, ValueError):
            return None
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended: {self.log()}")
        return lock if lock.get("http_port") and os.path.exists(f"/proc/{lock['pid']}") else None

    def log(self):
        with open(f"{self.folder}/log", "rb") as file:
            return file.read().decode(errors="replace")[-3000:]

    def kill(self):
        os.kill(self.lock()["pid"], signal.SIGKILL)
        self.process.wait()


GIVEN = set()


def free_port():
    """One that the kernel gives to no connection by itself, so that it is free again whenever its cell starts."""
    while True:
        port = random.SystemRandom().randrange(12_000, 20_000)
        if port in GIVEN:
            continue
        with socket.socket() as listener:
            try:
                listener.bind(("0.0.0.0", port))
            except OSError:
                continue
        GIVEN.add(port)
        return port


def until(what, ask):
    end = time.time() + DEADLINE_S
    while time.time() < end:
        if ask():
            return
        time.sleep(0.05)
    raise Failed(f"waited in vain: {what}")


# ---- What is done to a cell, and what must be so afterwards ----


class Story:
    """What was asked of the cell, and when it said that it was done."""

    def __init__(self, cell, source, chance):
        self.cell, self.source, self.chance = cell, source, chance
        # (time begun, time acknowledged, path, content or None for deleted, "freed")
        self.deeds = []

    def bytes(self, length):
        return self.chance.randbytes(length)

    def add(self, folder, contents):
        at = f"{self.source}/{folder}"
        os.makedirs(at, exist_ok=True)
        for name, content in contents.items():
            with open(f"{at}/{name}", "wb") as file:
                file.write(content)
        began = time.time()
        self.cell.say("add", at)
        done = time.time()
        self.deeds += [(began, done, f"{folder}/{name}", content) for name, content in contents.items()]

    def remove(self, path):
        began = time.time()
        self.cell.say("rm", path)
        self.deeds.append((began, time.time(), path, None))

    def free(self, path):
        began = time.time()
        # Refused until the peer has one copy more.
        until(f"{path} is freed", lambda: self.cell.say("rm", "--local", path, ok=False).returncode == 0)
        self.deeds.append((began, time.time(), path, "freed"))

    def restore(self, path, content):
        began = time.time()
        self.cell.say("restore", path)
        self.deeds.append((began, time.time(), path, content))

    def state_at(self, moment):
        """Of each path what it may be: the last that was acknowledged, and all that was under way."""
        acknowledged, possible = {}, {}
        for began, done, path, what in self.deeds:
            if done < moment:
                acknowledged[path] = what
                possible[path] = [what]
            elif began < moment:
                possible.setdefault(path, []).append(what)
        return acknowledged, possible


def live(cell, peer, source, chance):
    """A small life with all kinds of writes in it."""
    story = Story(cell, source, chance)
    story.add("notes", {f"{n:02}": story.bytes(chance.randrange(4000)) for n in range(50)})
    large = story.bytes(5_300_000)
    story.add("films", {"large": large, "short": story.bytes(300_000)})
    for n in range(4):
        story.add(f"single{n}", {"a": story.bytes(2000 + n)})
    cell.say("sync", "--wait")
    synced = time.time()
    for n in range(0, 50, 3):
        story.remove(f"notes/{n:02}")
    cell.say("confirm")
    story.free("films/large")
    story.free("single1/a")
    story.add("more", {f"{n:02}": story.bytes(chance.randrange(200_000)) for n in range(40)})
    story.restore("films/large", large)
    cell.say("sync", "--wait")
    cell.say("verify")
    for n in range(6):
        story.add(f"late{n}", {"b": story.bytes(700 * n), "c": story.bytes(100)})
    story.synced = synced
    return story


def check(cell, story, moment, out):
    """Everything that was acknowledged before `moment` is there."""
    report = cell.json("verify", "--deep", ok=False)
    report = report.get("result", report)
    acknowledged, possible = story.state_at(moment)
    freed = {path for path, may_be in possible.items() if "freed" in may_be}
    if report["damaged"] or not set(report["files"]) <= freed or (report["missing"] and not freed):
        raise Failed(f"verify --deep: {report}")
    told = cell.say("restore", "--all", "--to", out, ok=False)
    deleted = {entry["name"] for entry in cell.json("bin")["entries"]}
    for path, what in acknowledged.items():
        may_be, folder, name = possible[path], os.path.dirname(path), os.path.basename(path)
        if what is None:
            if os.path.exists(f"{out}/{path}") and len(may_be) == 1:
                raise Failed(f"{path} was deleted and is back")
            if name not in deleted and len(may_be) == 1:
                raise Failed(f"{path} was deleted and cannot be restored")
            continue
        if "freed" in may_be:
            # Its bytes are with the peer; here they may be or not.
            entries = cell.json("ls", folder, ok=False).get("entries", [])
            states = [entry["state"] for entry in entries if entry["name"] == name]
            if states not in (["remote-only"], ["present"], ["awaiting"]):
                raise Failed(f"{path} was freed and is {states}")
            continue
        if None in may_be and name in deleted:
            continue
        contents = [content for content in may_be if isinstance(content, bytes)]
        try:
            with open(f"{out}/{path}", "rb") as file:
                content = file.read()
        except OSError as why:
            raise Failed(f"{path} does not come back: {why}; {told.stderr.decode()[:500]}") from why
        if content not in contents:
            raise Failed(f"{path} has other bytes: {len(content)} of {[len(c) for c in contents]}")
    left = os.listdir(f"{cell.folder}/state/chunks/tmp")
    left += [name for name in os.listdir(f"{cell.folder}/state") if name.endswith(".tmp")]
    if left:
        raise Failed(f"left over: {left}")
    return len(acknowledged)


def check_holder(cell, phrase, story, moment, grove, folder):
    """What the owner was told to be safe with the holder comes back from it."""
    cell.start()
    try:
        new = Cell(grove, folder, "again")
        os.makedirs(folder)
        with open(f"{folder}/phrase", "w") as file:
            file.write(phrase)
        words = ["recover", "--peer", f"127.0.0.1:{cell.port}", "--phrase-file", f"{folder}/phrase"]
        new.port = free_port()
        # It fails where something was not with the holder yet.
        said = new.say(*words, ok=False)
        acknowledged, possible = story.state_at(story.synced)
        later = {path: [what] for path, what in acknowledged.items()}
        for began, _, path, what in story.deeds:
            if began < moment:
                later.setdefault(path, []).append(what)
        for path, what in acknowledged.items():
            may_be = later[path]
            try:
                with open(f"{folder}/home/{path}", "rb") as file:
                    content = file.read()
            except OSError as why:
                if None in may_be or "freed" in may_be:
                    continue
                raise Failed(f"{path} does not come back from the holder: {why}; {said.stderr.decode()}") from why
            if content not in may_be:
                raise Failed(f"{path} has other bytes: {len(content)}")
        return len(acknowledged)
    finally:
        cell.kill()


def record(grove, work, chance):
    """Lets two of three cells live under strace; gives what the replay needs."""
    cells = []
    for name in ("a", "b", "c"):
        cell = Cell(grove, f"{work}/{name}", name)
        os.makedirs(cell.folder)
        cell.say("init", "--name", name)
        cell.settings(disk__reserve_percent=0, disk__reserve_bytes_min=1 << 20, sync__every_s=2,
                      lan__discovery=False, portmap=False)
        cells.append(cell)
    a, b, c = cells
    for cell in cells:
        cell.start()
    for cell in (b, c):
        cell.say("join", a.say("invite").stdout.decode().strip())
    # It gets everything; the other one what is freed.
    a.say("peer", "favorite", "b")
    for cell in (a, b):
        os.kill(cell.lock()["pid"], signal.SIGTERM)
        cell.process.wait()
    os.sync()
    disks = [Disk(cell.folder) for cell in (a, b)]
    for cell in (a, b):
        cell.start(record=f"{work}/{cell.name}.strace")
    story = live(a, b, f"{work}/in", chance)
    phrase = json.loads(a.say("phrase", "--json").stdout)["phrase"]
    for cell in cells:
        cell.kill()
    played = []
    for cell, disk in zip((a, b), disks):
        calls, player = read_calls(f"{work}/{cell.name}.strace"), Player(disk)
        pids = {call.tid for call in calls}
        for call in calls:
            player.play(call)
        print(f"{cell.name}: {len(calls)} calls of {len(pids)} threads: {player.counts}", flush=True)
        os.remove(f"{work}/{cell.name}.strace")
        played.append((cell, disk, calls))
    return played, story, phrase


def main():
    grove, work, cuts, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)
    played, story, phrase = record(grove, work, chance)
    failures, checked, lost, most = 0, 0, 0, 0
    began = time.time()

    def cut(number, where, call, line, moment, blind_to=None):
        """Cuts the power, starts the cell again and looks; how much was there, and what is wrong with it."""
        nonlocal lost
        cell, disk, _ = played[where]
        it = Cut(disk, line, chance, blind_to)
        folder, out = f"{work}/cut{number}", f"{work}/out{number}"
        it.write(folder)
        lost += it.lost
        new = Cell(grove, folder, "cut")
        try:
            if where == 1:
                return check_holder(new, phrase, story, moment, grove, out), None
            return check(new, story, moment, out), None
        except (Failed, subprocess.TimeoutExpired) as why:
            if os.environ.get("GROVE_TEST_KEEP"):
                os.rename(folder, f"{work}/failed{number}")
            return 0, f"cut {number} of {cell.name} after line {line} ({call.name}), share {it.share}: {why}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)

    for number in range(cuts):
        # One in eight at the holder.
        where = 1 if number % 8 == 7 else 0
        relevant = [call for call in played[where][2] if where == 0 or call.ended_at > story.synced]
        # Half of them right before or after a sync, where promises are made.
        syncs = [call for call in relevant if call.name in SYNCS]
        call = chance.choice(syncs if chance.random() < 0.5 and syncs else relevant)
        line, moment = chance.choice([(call.began - 1, call.at), (call.ended, call.ended_at)])
        count, why = cut(number, where, call, line, moment)
        checked, most = checked + count, max(most, count)
        if why:
            failures += 1
            print(why, flush=True)
    print(
        f"{cuts} power cuts, {lost} writes and names lost by them, {checked} acknowledged states looked at"
        f" (at most {most} at once), {failures} failures, {time.time() - began:.0f} s",
        flush=True,
    )
    # Would it be found if a disk lied?
    blind = 0
    for kind in ("file", "folder"):
        last = played[0][2][-1]
        _, why = cut(f"-{kind}", 0, last, last.ended, last.ended_at, blind_to=kind)
        blind += why is None
        print(f"where syncs of a {kind} do nothing: {str(why).splitlines()[0][:200]}", flush=True)
    return 1 if failures or blind or not lost else 0


if __name__ == "__main__":
    sys.exit(main())
