#!/usr/bin/env python3
"""An independent reader of what a Grove cell keeps, written from docs/format.md.

It shares no code with Grove. From the 24 words and a folder of sealed chunks (a cell's own state folder or a
peer's) it finds the catalog, checks every signature, name, commitment and chunk key on the way, and rebuilds the
tree. It needs Python 3.9 and the package `cryptography`. The tests use it; it is also the way out should Grove
itself be gone.

Exit codes: 0 done, everything that was looked at is sound; 1 done, but something is missing or damaged (said on
stderr); 2 wrong usage; 3 the phrase is none; 4 no catalog head, or another cell's, or a catalog that does not open;
5 a file could not be read or written.
"""

import argparse
import hashlib
import hmac
import ipaddress
import json
import os
import re
import stat
import struct
import sys
from collections import namedtuple

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

OK, DAMAGED, USAGE, NO_PHRASE, NO_CATALOG, IO = range(6)

CHUNK_BYTES = 4 * 1024 * 1024
TAG_BYTES = 16
SEALED_BYTES_MAX = CHUNK_BYTES + TAG_BYTES
NO_NONCE = bytes(12)
ROOT = bytes(16)


class Bad(Exception):
    """Bytes that are not what the format says, or not this owner's."""


class Missing(Bad):
    """A chunk that no folder has."""


class BadPhrase(Exception):
    """The text is no recovery phrase."""


# ---- Codec (format.md, section 1) ----


class Reader:
    """Takes values off the front of bytes."""

    def __init__(self, data):
        self.data = bytes(data)
        self.at = 0

    def raw(self, n):
        if n > len(self.data) - self.at:
            raise Bad("ends early")
        self.at += n
        return self.data[self.at - n : self.at]

    def _number(self, form):
        return struct.unpack(form, self.raw(struct.calcsize(form)))[0]

    def u8(self):
        return self._number("<B")

    def u16(self):
        return self._number("<H")

    def u32(self):
        return self._number("<I")

    def u64(self):
        return self._number("<Q")

    def i64(self):
        return self._number("<q")

    def short(self):
        return self.raw(self.u8())

    def long(self):
        return self.raw(self.u32())

    def label(self, text):
        if self.short() != text.encode():
            raise Bad("another format's label, not " + text)

    def count(self, most, what):
        count = self.u32()
        if count > most:
            raise Bad("too many " + what)
        return count

    def rest(self):
        return self.data[self.at :]

    def end(self):
        if self.at != len(self.data):
            raise Bad("goes on after the end")


def label(text):
    """A domain label: a length byte and the text."""
    return bytes([len(text)]) + text.encode()


def utf8(data, what):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad(what + " is not UTF-8") from None


def sha256(data):
    return hashlib.sha256(data).digest()


def read_extensions(reader, count_max=255, bytes_max=None):
    """Extensions of a signed body; one that must be understood is refused, for none is known."""
    found = []
    count = reader.u8()
    if count > count_max:
        raise Bad("too many extensions")
    for _ in range(count):
        tag, flag = reader.u16(), reader.u8()
        if flag > 1:
            raise Bad("flag of an extension")
        data = reader.long()
        if bytes_max is not None and len(data) > bytes_max:
            raise Bad("an extension is too long")
        if flag == 1:
            raise Bad("extension %d must be understood and is not" % tag)
        found.append((tag, data))
    return found


# ---- Signatures (section 2) ----

_P = 2**255 - 19
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
# y-coordinates of the eight points of small order; the highest bit of an encoding is the sign of x.
_SMALL_Y = frozenset((0, 1, _P - 1, _Y8, _P - _Y8))


def is_small_order(point):
    y = int.from_bytes(point, "little") & (2**255 - 1)
    return y % _P in _SMALL_Y


def is_signed(public, body, signature):
    """Ed25519 by the strict rules: no key and no R of small order."""
    if is_small_order(public) or is_small_order(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, body)
        return True
    except (InvalidSignature, ValueError):
        return False


def check_signed(data, most, what, owner_at):
    """Splits signed bytes into body and signature and verifies it for the key that stands at `owner_at`."""
    if len(data) < 64 or len(data) > most:
        raise Bad("length of a " + what)
    body, signature = data[:-64], data[-64:]
    if not is_signed(body[owner_at : owner_at + 32], body, signature):
        raise Bad(what + " not signed by the owner it names")
    return body


# ---- Keys (section 2) ----


def hkdf(secret, name, context=b""):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=label(name) + context).derive(secret)


def seal_open(key, aad, sealed):
    if len(sealed) < TAG_BYTES:
        raise Bad("sealed bytes are too short")
    try:
        return ChaCha20Poly1305(key).decrypt(NO_NONCE, sealed, aad)
    except InvalidTag:
        raise Bad("sealed bytes do not open") from None


class Keys:
    """Everything that follows from the master key."""

    def __init__(self, master):
        if len(master) != 32:
            raise BadPhrase("a master key has 32 bytes")
        self.master = bytes(master)
        self._roots = {}

    def identity_seed(self, index=0, epoch=0):
        return hkdf(self.master, "grove/v1/node", struct.pack("<II", index, epoch))

    def identity(self, index=0, epoch=0):
        return Ed25519PrivateKey.from_private_bytes(self.identity_seed(index, epoch))

    def id(self, index=0, epoch=0):
        return self.identity(index, epoch).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def x25519_secret(self, index=0, epoch=0):
        return hkdf(self.master, "grove/v1/x25519", struct.pack("<II", index, epoch))

    def x25519_public(self, index=0, epoch=0):
        secret = X25519PrivateKey.from_private_bytes(self.x25519_secret(index, epoch))
        return secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def chunk_root(self, epoch):
        if epoch not in self._roots:
            self._roots[epoch] = hkdf(self.master, "grove/v1/chunk", struct.pack("<I", epoch))
        return self._roots[epoch]

    def file_key(self, salt):
        return hkdf(self.master, "grove/v1/file", salt)

    def owner_part_key(self, random):
        return hkdf(self.master, "grove/v1/owner part", random)

    def segment_key(self, random):
        return hkdf(self.master, "grove/v1/segment", random)

    def link_group(self, inode):
        return hkdf(self.master, "grove/v1/link group", inode)[:16]

    def recovery_secret(self):
        return hkdf(self.master, "grove/v1/recover")


def beacon_key(sender, receiver, secret, public):
    """Key of what `sender` says to `receiver` (ids), from the secret of one and the public key of the other (X25519)."""
    shared = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    return hkdf(shared, "grove/v1/beacon", sender + receiver)


def beacon_read(key, datagram, source):
    """(slot, port, number) of a LAN beacon from the IP address `source`, or None if it says nothing under this key."""
    if len(datagram) != 438 or datagram[:5] != b"GRVB\x01" or datagram[5] > 1:
        return None
    address = ipaddress.ip_address(source)
    packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    header, slots = datagram[:22], datagram[22:]

    def mac(what, sealed=b""):
        return hmac.new(key, bytes([what]) + header + packed + sealed, hashlib.sha256).digest()

    first = mac(0)
    for at in range(16):
        slot = slots[26 * at : 26 * at + 26]
        if slot[:8] == first[:8] and mac(1, slot[8:18])[:8] == slot[18:]:
            plain = bytes(a ^ b for a, b in zip(slot[8:18], first[8:18]))
            return (at, *struct.unpack("<HQ", plain))
    return None


LEAF_BYTES = 65536


def prove_whole(nonce, verifier, prover, owner, name, sealed):
    return hmac.new(nonce, label("grove audit v1") + verifier + prover + owner + name + sealed, hashlib.sha256).digest()


def leaf_hash(index, data):
    return sha256(label("grove leaf v1") + struct.pack("<I", index) + data)


def node_hash(left, right):
    return sha256(label("grove node v1") + left + right)


def root_hash(length, top):
    return sha256(label("grove root v1") + struct.pack("<I", length) + top)


def pair_up(level):
    """What the hashes of a level come together in."""
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [node_hash(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0] if level else bytes(32)


def climb(width, at, here, path):
    path = list(path)
    while width > 1:
        if at ^ 1 < width:
            if not path:
                raise Bad("the path is too short")
            other = path.pop(0)
            here = node_hash(other, here) if at & 1 else node_hash(here, other)
        at, width = at >> 1, (width + 1) // 2
    if path:
        raise Bad("the path is too long")
    return here


def chunk_root(sealed):
    """Root of a chunk's leaves: what a leaf's proof leads to."""
    count = max(1, -(-len(sealed) // LEAF_BYTES))
    level = [leaf_hash(i, sealed[i * LEAF_BYTES : (i + 1) * LEAF_BYTES]) for i in range(count)]
    return root_hash(len(sealed), pair_up(level))


def root_by_leaf(length, index, path, data):
    """Where a leaf and the hashes beside its way lead."""
    width = max(1, -(-length // LEAF_BYTES))
    return root_hash(length, climb(width, index, leaf_hash(index, data), path))


def commitment(file_key):
    return hkdf(file_key, "grove/v1/commit")


def content_part_key(file_key, random):
    return hkdf(file_key, "grove/v1/content part", random)


# ---- Recovery phrase (section 3) ----


def word_list():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "src", "english.txt")
    with open(path, encoding="ascii") as file:
        words = file.read().split()
    if len(words) != 2048:
        raise BadPhrase("english.txt has not 2048 words")
    return words


def master_from_phrase(text):
    """The master key of a phrase: any case, spacing, numbers between words, and words cut to four letters."""
    words = word_list()
    places = {word: at for at, word in enumerate(words)}
    shorts = {word[:4]: word for word in words}
    found = []
    for typed in re.findall(r"[a-z]+", text.lower()):
        whole = typed if typed in places else shorts.get(typed[:4], "")
        if not whole.startswith(typed):
            raise BadPhrase("word %d, %r, is none of the list" % (len(found) + 1, typed))
        found.append(places[whole])
    if len(found) != 24:
        raise BadPhrase("a phrase has 24 words, this one %d" % len(found))
    bits = 0
    for place in found:
        bits = bits << 11 | place
    master, check = (bits >> 8).to_bytes(32, "big"), bits & 255
    if sha256(master)[0] != check:
        raise BadPhrase("the words do not belong together: two exchanged or one misread")
    return master


def phrase_of(master):
    words = word_list()
    bits = int.from_bytes(master, "big") << 8 | sha256(master)[0]
    return " ".join(words[bits >> 11 * (23 - at) & 2047] for at in range(24))


# ---- Chunks (section 4) ----


def padded_len(n):
    """Padmé, from 128 bytes up."""
    if n <= 128:
        return 128
    e = n.bit_length() - 1
    s = e.bit_length()
    mask = (1 << (e - s)) - 1
    return (n + mask) & ~mask


def chunk_key(keys, epoch, encoding, padded):
    return hmac.new(keys.chunk_root(epoch), bytes([encoding]) + padded, hashlib.sha256).digest()


def chunk_aad(encoding):
    return b"grove chunk v1" + bytes([encoding])


def seal_chunk(keys, epoch, padded):
    """Key, name and sealed bytes of a chunk."""
    key = chunk_key(keys, epoch, 0, padded)
    sealed = ChaCha20Poly1305(key).encrypt(NO_NONCE, padded, chunk_aad(0))
    return key, sha256(sealed), sealed


def open_chunk(keys, epoch, key, encoding, sealed):
    """The padded bytes of an own chunk, whose key must be the one they make."""
    if encoding != 0:
        raise Bad("encoding %d of a chunk is not known" % encoding)
    padded = seal_open(key, chunk_aad(encoding), sealed)
    if not hmac.compare_digest(chunk_key(keys, epoch, encoding, padded), key):
        raise Bad("a chunk under a key that its bytes do not make")
    return padded


# ---- Manifests (sections 5 and 6) ----

FILE, SYMLINK, FOLDER = range(3)
KINDS = ("file", "symlink", "folder")

Chunk = namedtuple("Chunk", "name key encoding len")
Hole = namedtuple("Hole", "len")
List = namedtuple("List", "name key entries len")


def read_entry(reader):
    """An entry; its key, if it has one, is read elsewhere."""
    mark = reader.u8()
    if mark == 0:
        entry = Chunk(reader.raw(32), None, reader.u8(), reader.u32())
        fits = 1 <= entry.len <= CHUNK_BYTES
    elif mark == 1:
        entry = Hole(reader.u64())
        fits = entry.len > 0
    elif mark == 2:
        entry = List(reader.raw(32), None, reader.u32(), reader.u64())
        fits = 1 <= entry.entries <= 4096 and entry.len > 0
    else:
        raise Bad("unknown kind of entry")
    if not fits:
        raise Bad("length of an entry out of range")
    return entry


def read_list(padded):
    """Entries of an opened list chunk."""
    reader = Reader(padded)
    reader.label("grove list v1")
    entries = []
    for _ in range(reader.count(4096, "entries in a list")):
        entry = read_entry(reader)
        if isinstance(entry, List):
            raise Bad("a list within a list")
        if isinstance(entry, Chunk):
            entry = entry._replace(key=reader.raw(32))
        entries.append(entry)
    if any(reader.rest()):
        raise Bad("a list goes on after its end")
    return entries


def is_name(name):
    return 1 <= len(name) <= 255 and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


class Manifest:
    """A version of a file, symlink or folder, opened and verified."""

    def __init__(self, data, keys, file_key=None):
        """With a file key from a grant the owner part stays sealed."""
        body = check_signed(data, 256 * 1024, "manifest", owner_at=18)
        self.hash = sha256(body)
        r = Reader(body)
        r.label("grove manifest v1")
        self.owner = r.raw(32)
        self.file = r.raw(16)
        self.version = r.u64()
        self.life = r.u32()
        flags = r.u8()
        if flags > 7:
            raise Bad("flags of a manifest")
        self.tombstone = bool(flags & 1)
        self.kind = r.u8()
        if self.kind > FOLDER:
            raise Bad("kind of a manifest")
        self.previous = r.raw(32) if flags & 2 else None
        self.root = r.u32()
        self.size = r.u64()
        self.mtime_s = r.i64()
        self.mtime_ns = r.u32()
        self.mode = r.u32()
        if self.mtime_ns >= 10**9 or self.mode > 0o7777:
            raise Bad("time or mode out of range")
        self.link_group = r.raw(16) if flags & 4 else None
        self.salt = r.raw(16)
        committed = r.raw(32)
        self.epoch = r.u32()
        count = r.count(1024, "entries in a manifest")
        has_bytes = self.kind == FILE and not self.tombstone
        if count and not has_bytes:
            raise Bad("entries in what has no bytes")
        entries = [read_entry(r) for _ in range(count)]
        if sum(entry.len for entry in entries) != (self.size if has_bytes else 0):
            raise Bad("entries do not add up to the size")
        random = r.raw(32)
        content = r.long()
        owner_part = r.long()
        self.extensions = read_extensions(r)
        r.end()

        is_granted = file_key is not None
        file_key = file_key or keys.file_key(self.salt)
        if commitment(file_key) != committed:
            raise Bad("manifest commits to another file key")
        if content:
            content = seal_open(content_part_key(file_key, random), b"grove content part v1", content)
        self.target = b""
        self.entries = []
        if self.kind == SYMLINK:
            if len(content) > 4096:
                raise Bad("target of a link is too long")
            self.target, self.entries = content, entries
        else:
            r = Reader(content)
            for entry in entries:
                self.entries.append(entry if isinstance(entry, Hole) else entry._replace(key=r.raw(32)))
            r.end()
        if is_granted:
            return
        r = Reader(seal_open(keys.owner_part_key(random), b"grove owner part v1", owner_part))
        self.parent = r.raw(16)
        self.name = r.short()
        self.note = utf8(r.long(), "a note")
        r.end()
        if not is_name(self.name):
            raise Bad("no name of a file")

    @property
    def mtime(self):
        """Nanoseconds since 1970."""
        return self.mtime_s * 10**9 + self.mtime_ns


# ---- Catalog (section 7) ----

KIND_FILE = 1
RECORD_KINDS = {
    1: "file",
    2: "remote-only",
    3: "peer",
    4: "grant",
    5: "received grant",
    6: "revocation",
    7: "used invite",
    8: "setting",
    9: "audit root",
    10: "statement head",
    11: "chat",
}

Segment = namedtuple("Segment", "name len")


class Head:
    """A published state of a catalog, verified."""

    def __init__(self, data):
        body = check_signed(data, 1024 * 1024, "head", owner_at=14)
        self.hash = sha256(body)
        r = Reader(body)
        r.label("grove head v1")
        self.owner = r.raw(32)
        self.life = r.u32()
        self.seq = r.u64()
        self.run = r.raw(16)
        self.parents = [r.raw(32) for _ in range(r.count(64, "parents"))]
        self.segments = [Segment(r.raw(32), r.u32()) for _ in range(r.count(16384, "segments"))]
        self.extensions = read_extensions(r)
        r.end()
        if self.life == 0 or self.seq == 0:
            raise Bad("lives and sequences begin at 1")
        if any(segment.len > SEALED_BYTES_MAX for segment in self.segments):
            raise Bad("length of a segment")


def open_segment(data, keys):
    if len(data) < 32 or len(data) > SEALED_BYTES_MAX:
        raise Bad("length of a segment")
    return seal_open(keys.segment_key(data[:32]), b"grove segment v1", data[32:])


def read_segment(plain):
    """Yields (seq, key, body)."""
    r = Reader(plain)
    r.label("grove segment v1")
    if r.u8() != 0:
        raise Bad("version of a segment")
    while r.at < len(r.data):
        mark = r.u8()
        if mark == 0:
            if any(r.rest()):
                raise Bad("a segment goes on after its end")
            return
        if mark != 1:
            raise Bad("unknown mark in a segment")
        seq, key, body = r.u64(), r.short(), r.long()
        if not key or len(body) > 1024 * 1024:
            raise Bad("a record without key or out of size")
        yield seq, key, body


def version_key(file, version, hash_):
    return bytes([KIND_FILE]) + file + struct.pack(">Q", version) + hash_[:8]


# ---- Chunks on disk (sections 8 and 9) ----

SMALL_BYTES = 128 * 1024


def pack_head(pack):
    head = label("grove/v1/pack") + bytes(2) + struct.pack("<Q", pack)
    return head + sha256(head)[:8]


def entry_head(pack, at, is_first, name, length):
    fields = b"gpk" + (b"B" if is_first else b"E") + struct.pack("<I", length) + name
    return fields + sha256(struct.pack("<QQ", pack, at) + fields)[:8]


def walk_pack(pack, data):
    """Yields (offset of the sealed bytes, their number, name) of each entry, over what is none."""
    if data[:32] != pack_head(pack):
        raise Bad("not the head of this pack")
    at = 32
    while at < len(data):
        head = data[at : at + 48]
        if len(head) == 48 and head[:3] == b"gpk" and head[3:4] in (b"B", b"E"):
            length, name = struct.unpack("<I", head[4:8])[0], head[8:40]
            is_sound = head == entry_head(pack, at, head[3:4] == b"B", name, length)
            if is_sound and length < SMALL_BYTES and at + 48 + length <= len(data):
                yield at + 48, length, name
                at += 48 + length
                continue
        at = data.find(b"gpk", at + 1)
        if at < 0:
            return


def read_pack_id(file_name):
    match = re.fullmatch(r"([0-9a-f]{16})\.pack", file_name)
    return int(match.group(1), 16) if match else None


Copy = namedtuple("Copy", "path offset len")


class Chunks:
    """Sealed chunks in one or more folders, found by looking."""

    def __init__(self, folders):
        self.copies = {}
        self.problems = []
        for folder in folders:
            inner = os.path.join(folder, "chunks")
            self._scan(inner if os.path.isdir(inner) else folder)

    def _add(self, name, copy):
        self.copies.setdefault(name, []).append(copy)

    def _scan(self, folder):
        for shard in sorted(os.listdir(folder)):
            path = os.path.join(folder, shard)
            if re.fullmatch(r"[0-9a-f]{2}", shard) and os.path.isdir(path):
                for text in sorted(os.listdir(path)):
                    if re.fullmatch(r"[0-9a-f]{64}", text) and text[:2] == shard:
                        full = os.path.join(path, text)
                        self._add(bytes.fromhex(text), Copy(full, 0, os.path.getsize(full)))
        packs = os.path.join(folder, "packs")
        if not os.path.isdir(packs):
            return
        for text in sorted(os.listdir(packs)):
            pack = read_pack_id(text)
            if pack is None:
                continue
            full = os.path.join(packs, text)
            with open(full, "rb") as file:
                data = file.read()
            try:
                for offset, length, name in walk_pack(pack, data):
                    self._add(name, Copy(full, offset, length))
            except Bad as why:
                self.problems.append("%s: %s" % (full, why))

    def places(self, name):
        return self.copies.get(name, [])

    def read(self, name):
        """Sealed bytes that hash to the name, from whichever copy has them."""
        for copy in self.places(name):
            if copy.len > SEALED_BYTES_MAX:
                self.problems.append("%s is longer than a chunk" % copy.path)
                continue
            with open(copy.path, "rb") as file:
                file.seek(copy.offset)
                data = file.read(copy.len)
            if sha256(data) == name:
                return data
            self.problems.append("a copy of chunk %s in %s is damaged" % (name.hex(), copy.path))
        kind = "damaged" if self.places(name) else "missing"
        raise Missing("chunk %s is %s" % (name.hex(), kind))


# ---- A whole cell (section 10) ----

Version = namedtuple("Version", "seq manifest")


class Node:
    """A file, symlink or folder that is not deleted, and its place."""

    def __init__(self, version):
        self.manifest = version.manifest
        self.name = version.manifest.name
        self.parent = None

    def path(self):
        names, node, seen = [], self, set()
        while node is not None:
            if node.manifest.file in seen:
                return None
            seen.add(node.manifest.file)
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


class Cell:
    """The catalog of one head, read and checked."""

    def __init__(self, keys, head_bytes, chunks):
        self.keys = keys
        self.chunks = chunks
        self.head = Head(head_bytes)
        if self.head.owner != keys.id():
            raise Bad("the head is of cell %s, the phrase of %s" % (self.head.owner.hex(), keys.id().hex()))
        self.problems = []
        self.records = {}
        for segment in self.head.segments:
            data = chunks.read(segment.name)
            if len(data) != segment.len:
                raise Bad("segment %s has another length than its head says" % segment.name.hex())
            for seq, key, body in read_segment(open_segment(data, keys)):
                self._take(seq, key, body)
        self.versions = {}
        for key, (seq, body) in self.records.items():
            if key[0] == KIND_FILE and body:
                self._take_version(seq, key, body)

    def _take(self, seq, key, body):
        known = self.records.get(key)
        if known and known[0] == seq and known[1] != body:
            self.problems.append("two records %s have the number %d" % (key.hex(), seq))
        if known is None or seq > known[0]:
            self.records[key] = (seq, body)

    def _take_version(self, seq, key, body):
        try:
            manifest = Manifest(body, self.keys)
            if manifest.owner != self.head.owner:
                raise Bad("signed by another cell")
            if key != version_key(manifest.file, manifest.version, manifest.hash):
                raise Bad("it stands under another version's key")
            if manifest.root != 0:
                raise Bad("root %d is not known" % manifest.root)
        except Bad as why:
            self.problems.append("record %d: %s" % (seq, why))
            return
        self.versions.setdefault(manifest.file, []).append(Version(seq, manifest))

    def newest(self, file):
        return max(self.versions[file], key=lambda v: (v.manifest.version, v.manifest.life, v.seq))

    def all_manifests(self):
        for file in sorted(self.versions):
            for version in sorted(self.versions[file], key=lambda v: (v.manifest.version, v.seq)):
                yield version.manifest

    def tree(self):
        """All that is not deleted, by path (bytes), and the version of GroveHome itself or None."""
        nodes, root = {}, None
        for file in sorted(self.versions):
            version = self.newest(file)
            if version.manifest.tombstone:
                continue
            if file == ROOT:
                root = version.manifest
            else:
                nodes[file] = Node(version)
        # Where a folder is gone, what lay in it goes to the top; so does a folder that lies within itself.
        for node in nodes.values():
            parent = nodes.get(node.manifest.parent)
            if parent is not None and parent.manifest.kind == FOLDER:
                node.parent = parent
        for file in sorted(nodes):
            if nodes[file].manifest.kind == FOLDER and nodes[file].path() is None:
                nodes[file].parent = None
        taken = set()
        for file in sorted(nodes):
            node = nodes[file]
            folder = node.parent.manifest.file if node.parent else ROOT
            if (folder, node.name) in taken:
                mark = b" (%s)" % file[:4].hex().encode()
                node.name = node.name[: 255 - len(mark)] + mark
            taken.add((folder, node.name))
        return {node.path(): node.manifest for node in nodes.values()}, root

    def entries(self, manifest):
        """Chunks and holes of a file in order, lists opened."""
        for entry in manifest.entries:
            if not isinstance(entry, List):
                yield entry
                continue
            sealed = self.chunks.read(entry.name)
            inner = read_list(open_chunk(self.keys, manifest.epoch, entry.key, 0, sealed))
            if len(inner) != entry.entries or sum(one.len for one in inner) != entry.len:
                raise Bad("a list holds something else than its manifest says")
            yield from inner

    def stretches(self, manifest):
        """Yields (length, bytes or None for a hole) of a file in order, one chunk in memory at a time."""
        for entry in self.entries(manifest):
            if isinstance(entry, Hole):
                yield entry.len, None
                continue
            sealed = self.chunks.read(entry.name)
            padded = open_chunk(self.keys, manifest.epoch, entry.key, entry.encoding, sealed)
            if len(padded) != padded_len(entry.len) or any(padded[entry.len :]):
                raise Bad("chunk %s is padded to another length" % entry.name.hex())
            yield entry.len, padded[: entry.len]


# ---- Cards and invites (sections 11 and 12) ----


def read_texts(reader, most):
    count = reader.u8()
    if count > most:
        raise Bad("a list is too long")
    return [utf8(reader.short(), "a text") for _ in range(count)]


def is_graphic(text):
    return 1 <= len(text) <= 255 and all("!" <= c <= "~" for c in text)


def is_address(text):
    host, colon, port = text.rpartition(":")
    if not colon or not is_graphic(text) or not re.fullmatch(r"[0-9]{1,}", port) or not 1 <= int(port) <= 65535:
        return False
    if host.startswith("[") and host.endswith("]"):
        import ipaddress

        try:
            return "%" not in host and bool(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            return False
    return bool(host) and not any(c in host for c in ":[]/@")


def is_control(c):
    return ord(c) < 32 or 127 <= ord(c) < 160


class Card:
    """Who a cell is and where it can be reached, verified."""

    def __init__(self, data):
        body = check_signed(data, 8 * 1024, "card", owner_at=14)
        r = Reader(body)
        r.label("grove card v1")
        self.id = r.raw(32)
        self.x25519 = r.raw(32)
        self.sequence = r.u64()
        name = r.short()
        self.name = utf8(name, "a name")
        if not 1 <= len(name) <= 64 or any(is_control(c) for c in self.name):
            raise Bad("name of a card")
        self.addresses = read_texts(r, 16)
        self.relays = read_texts(r, 8)
        if not all(map(is_address, self.addresses)) or not all(map(is_graphic, self.relays)):
            raise Bad("an address is not one")
        self.successor = None
        has_successor = r.u8()
        if has_successor > 1:
            raise Bad("neither with nor without a successor")
        if has_successor:
            self.successor, signature = r.raw(32), r.raw(64)
            if not is_signed(self.successor, label("grove successor v1") + self.id, signature):
                raise Bad("the successor has not agreed")
        self.extensions = read_extensions(r, 16, 2048)
        r.end()


BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


class Invite:
    """A first contact as text."""

    def __init__(self, text):
        text = text.strip()
        if text[:6].lower() != "grove:":
            raise Bad("an invite begins with grove:")
        letters = "".join(text[6:].split()).lower()
        value = 0
        for letter in letters:
            if letter not in BASE32:
                raise Bad("letter %r cannot stand in an invite" % letter)
            value = value << 5 | BASE32.index(letter)
        spare = len(letters) * 5 % 8
        if value & ((1 << spare) - 1):
            raise Bad("an invite was changed on its way")
        data = (value >> spare).to_bytes(len(letters) * 5 // 8, "big")
        r = Reader(data)
        if r.u8() != 1:
            raise Bad("an invite of a later version")
        body_len = r.u16()
        if body_len > 4096 or len(letters) != -(-(3 + body_len + 4) * 8 // 5):
            raise Bad("an invite of another length than it says")
        if sha256(label("grove invite v1") + data[:-4])[:4] != data[-4:]:
            raise Bad("an invite was changed on its way")
        r = Reader(data[3:-4])
        self.inviter = r.raw(32)
        self.x25519 = r.raw(32)
        self.invite_id = r.raw(16)
        self.secret = r.raw(32)
        self.role = r.u8()
        self.expires = r.u64()
        self.addresses = read_texts(r, 16)
        relays = read_texts(r, 1)
        self.relay = relays[0] if relays else None
        r.end()
        if self.role > 1 or is_small_order(self.inviter):
            raise Bad("an unknown role, or a weak key")
        if not all(map(is_address, self.addresses)) or not all(map(is_graphic, relays)):
            raise Bad("an address is not one")


# ---- Grants (section 14) ----

SMALL_ORDER = "a key of small order"


def grant_leaf(name, sealed_len):
    return sha256(label("grove grant leaf v1") + name + struct.pack("<I", sealed_len))


def grant_list(leaf, chunks, top):
    return sha256(label("grove grant list v1") + leaf + struct.pack("<I", chunks) + top)


def grant_root_of(groups, top):
    return sha256(label("grove grant root v1") + struct.pack("<I", groups) + top)


ListSum = namedtuple("ListSum", "sealed_len chunks top")


def list_sum(entries, sealed_len):
    leaves = [grant_leaf(e.name, padded_len(e.len) + TAG_BYTES) for e in entries if isinstance(e, Chunk)]
    return ListSum(sealed_len, len(leaves), pair_up(leaves))


def grant_root(entries, sums):
    """Root over all chunks of a file, from its manifest's entries and the sums of its lists."""
    sums, groups = list(sums), []
    for entry in entries:
        if isinstance(entry, Chunk):
            groups.append(grant_leaf(entry.name, padded_len(entry.len) + TAG_BYTES))
        elif isinstance(entry, List):
            if not sums:
                raise Bad("a list without its sum")
            one = sums.pop(0)
            groups.append(grant_list(grant_leaf(entry.name, one.sealed_len), one.chunks, one.top))
    if sums:
        raise Bad("a sum without its list")
    return grant_root_of(len(groups), pair_up(groups))


def root_by_proof(proof, name, sealed_len):
    """The root that a proof of membership leads to."""
    r = Reader(proof)

    def follow(here, most):
        width, at = r.u32(), r.u32()
        if width > most or at >= width:
            raise Bad("no such place in the tree")
        return width, climb(width, at, here, [r.raw(32) for _ in range(r.u8())])

    kind, here = r.u8(), grant_leaf(name, sealed_len)
    if kind == 1:
        here = grant_list(here, r.u32(), r.raw(32))
    elif kind == 2:
        list_leaf = r.raw(32)
        here = grant_list(list_leaf, *follow(here, 4096))
    elif kind != 0:
        raise Bad("kind of a proof")
    root = grant_root_of(*follow(here, 1024))
    r.end()
    return root


class Ticket:
    """What a holder sees of a grant, verified."""

    def __init__(self, data):
        body = check_signed(data, 4096, "ticket", owner_at=16)
        self.hash = sha256(body)
        r = Reader(body)
        r.label("grove ticket v1")
        self.creator, self.recipient, self.id, self.root = r.raw(32), r.raw(32), r.raw(16), r.raw(32)
        self.rights, self.number, self.granted, self.expires = r.u8(), r.u64(), r.u64(), r.u64()
        self.extensions = read_extensions(r)
        r.end()
        if is_small_order(self.recipient):
            raise Bad(SMALL_ORDER)
        if self.rights != 1 or self.number == 0 or 0 < self.expires < self.granted:
            raise Bad("rights, number or times of a ticket")


class Revocations:
    """What a creator has taken back, verified."""

    def __init__(self, data):
        r = Reader(check_signed(data, 80 * 1024, "list of revocations", owner_at=21))
        r.label("grove revocations v1")
        self.creator, self.number = r.raw(32), r.u64()
        self.revoked = [(r.u64(), r.u64()) for _ in range(r.count(4096, "ranges"))]
        self.extensions = read_extensions(r)
        r.end()
        before = -1
        for first, last in self.revoked:
            if not before + 2 <= first <= last:
                raise Bad("ranges ascend, with gaps")
            before = last
        if self.number == 0:
            raise Bad("number of a list")

    def contains(self, number):
        return any(first <= number <= last for first, last in self.revoked)


class Statement:
    """What two cells have stored for each other; all signatures that it has are checked."""

    def __init__(self, data):
        if len(data) > 1024:
            raise Bad("a statement is too long")
        r = Reader(data)
        r.label("grove statement v1")
        self.cells = [r.raw(32), r.raw(32)]
        self.sequence, self.previous = r.u64(), r.raw(32)
        self.lives = [r.u32(), r.u32()]
        self.start, self.until = r.u64(), r.u64()
        self.stored = [r.u64(), r.u64()]
        self.extensions = read_extensions(r, 16)
        body = data[: r.at]
        self.hash = sha256(body)
        if not self.cells[0] < self.cells[1] or any(map(is_small_order, self.cells)):
            raise Bad("cells of a statement")
        if self.sequence == 0 or 0 in self.lives or self.start > self.until:
            raise Bad("number, lives or period of a statement")
        if max(self.stored) >= 2**63:
            raise Bad("a figure is too large")
        signers = r.u8()
        if not 1 <= signers <= 3:
            raise Bad("nobody has signed it")
        self.signed = [bool(signers & 1), bool(signers & 2)]
        for cell, has_signed in zip(self.cells, self.signed):
            if has_signed and not is_signed(cell, body, r.raw(64)):
                raise Bad("a signature is not the cell's")
        r.end()


class Settle:
    """A request 28 or its reply: what one cell tells another of its counting."""

    def __init__(self, data):
        r = Reader(data)
        if r.u8() != 28:
            raise Bad("another request")
        self.life = r.u32()
        self.counted, self.waiting, self.forfeited, self.debt, self.claimed, self.time = (r.u64() for _ in range(6))
        disagrees, wants = r.u8(), r.u8()
        if disagrees > 1 or wants > 1 or max(self.counted, self.waiting, self.forfeited, self.debt, self.claimed) >= 2**63:
            raise Bad("a figure is too large, or neither yes nor no")
        self.disagrees, self.wants = disagrees == 1, wants == 1
        self.newest, self.proposal = r.long(), r.long()
        r.end()


def noise_x_open(secret, prologue, message):
    """(sender's static key, payload) of one message of Noise_X_25519_ChaChaPoly_SHA256."""
    mine = X25519PrivateKey.from_private_bytes(secret)
    public = mine.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    ck = b"Noise_X_25519_ChaChaPoly_SHA256".ljust(32, b"\0")
    h = sha256(sha256(ck + prologue) + public)
    r = Reader(message)

    def mix_key(other):
        nonlocal ck
        try:
            shared = mine.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError:
            raise Bad(SMALL_ORDER) from None
        temp = hmac.new(ck, shared, hashlib.sha256).digest()
        ck = hmac.new(temp, b"\1", hashlib.sha256).digest()
        return hmac.new(temp, ck + b"\2", hashlib.sha256).digest()

    def decrypt(key, sealed):
        nonlocal h
        plain = seal_open(key, h, sealed)
        h = sha256(h + sealed)
        return plain

    ephemeral = r.raw(32)
    h = sha256(h + ephemeral)
    sender = decrypt(mix_key(ephemeral), r.raw(48))
    return sender, decrypt(mix_key(sender), r.rest())


Holder = namedtuple("Holder", "id card")


class Grant:
    """A grant, opened as its recipient with the X25519 secret `secret` and verified."""

    def __init__(self, data, recipient, secret, creator, creator_x25519):
        if len(data) > 384 * 1024:
            raise Bad("a grant is too long")
        r = Reader(data)
        r.label("grove grant v1")
        self.ticket, message, random, along = Ticket(r.long()), r.long(), r.raw(32), r.long()
        r.end()
        if self.ticket.creator != creator:
            raise Bad("the grant does not come from its creator")
        if self.ticket.recipient != recipient:
            raise Bad("the grant is for another cell")
        sender, private = noise_x_open(secret, label("grove grant private v1") + self.ticket.hash, message)
        if sender != creator_x25519:
            raise Bad("the grant was sealed by another cell")
        self._read_private(Reader(private))
        if commitment(self.file_key) != self.commitment:
            raise Bad("the grant commits to another file key")
        r = Reader(seal_open(hkdf(self.file_key, "grove/v1/grant manifest", random), b"grove grant manifest v1", along))
        self.manifest = m = Manifest(r.long(), None, self.file_key)
        self.sums = [ListSum(r.u32(), r.u32(), r.raw(32)) for _ in range(r.count(1024, "lists"))]
        r.end()
        if (m.owner, m.hash, m.file, m.version, m.size) != (
            creator, self.manifest_hash, self.file, self.version, self.size,
        ) or m.kind != FILE or m.tombstone:
            raise Bad("the grant and its manifest do not belong together")
        if grant_root(m.entries, self.sums) != self.ticket.root:
            raise Bad("chunks that the ticket does not cover")

    def _read_private(self, r):
        r.label("grove grant private v1")
        self.manifest_hash, self.file, self.version, name = r.raw(32), r.raw(16), r.u64(), r.short()
        if r.u8() != FILE:
            raise Bad("only files are granted")
        self.media, self.size = utf8(r.short(), "a media type"), r.u64()
        self.file_key, self.commitment = r.raw(32), r.raw(32)
        count = r.u8()
        if count > 16:
            raise Bad("too many holders")
        self.holders = [Holder(r.raw(32), r.long()) for _ in range(count)]
        for holder in self.holders:
            if holder.card and Card(holder.card).id != holder.id:
                raise Bad("the card of a holder")
        self.thumbnail = r.long()
        if len(self.thumbnail) > 16 * 1024:
            raise Bad("a thumbnail is too long")
        self.share = None
        mark = r.u8()
        if mark > 1:
            raise Bad("neither with nor without a share")
        folders = []
        if mark:
            share, count = r.raw(16), r.u8()
            if count > 64:
                raise Bad("a path is too long")
            folders = [r.short() for _ in range(count)]
        if not all(map(is_name, [name, *folders])):
            raise Bad("no name of a file")
        self.name = utf8(name, "a name")
        if mark:
            self.share = (share, [utf8(folder, "a name") for folder in folders])
        self.extensions = read_extensions(r)
        r.end()


# ---- Commands ----


def show(path):
    """A path for people and logs: bytes that are not UTF-8, and control characters, as \\xNN."""
    text = path.decode("utf-8", "surrogateescape")
    return "".join(
        "\\x%02x" % (ord(c) & 255) if is_control(c) or 0xDC80 <= ord(c) <= 0xDCFF else "\\\\" if c == "\\" else c
        for c in text
    )


def describe(path, m):
    return {
        "path": show(path),
        "path_hex": path.hex(),
        "kind": KINDS[m.kind],
        "mode": m.mode,
        "size": m.size,
        "mtime_s": m.mtime_s,
        "mtime_ns": m.mtime_ns,
        "version": m.version,
        "life": m.life,
        "file": m.file.hex(),
        "target_hex": m.target.hex(),
        "link_group": m.link_group.hex() if m.link_group else None,
    }


def write_file(cell, manifest, path):
    """Writes a file's bytes, holes as holes. A file that cannot be made whole is removed again."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        try:
            at = 0
            for length, data in cell.stretches(manifest):
                if data is not None:
                    file.seek(at)
                    file.write(data)
                at += length
            if at != manifest.size:
                raise Bad("the stretches do not add up to the size")
            file.truncate(at)
        except Bad:
            os.unlink(path)
            raise


def set_times_and_mode(path, manifest):
    if manifest.kind != SYMLINK:
        os.chmod(path, manifest.mode)
    os.utime(path, ns=(manifest.mtime, manifest.mtime), follow_symlinks=False)


def extract(cell, out, complain):
    """Rebuilds the tree below `out`, which must be new or empty. Gives the number of things written."""
    out = os.fsencode(out)
    os.makedirs(out, mode=0o700, exist_ok=True)
    if os.listdir(out):
        raise FileExistsError(17, "is not empty", os.fsdecode(out))
    tree, root = cell.tree()
    paths = sorted(tree, key=lambda path: (path.count(b"/"), path))
    linked, done = {}, 0
    for path in paths:
        m, full = tree[path], os.path.join(out, path)
        try:
            if m.kind == FOLDER:
                os.mkdir(full, 0o700)
            elif m.kind == SYMLINK:
                os.symlink(m.target, full)
                set_times_and_mode(full, m)
            else:
                same = (m.link_group, m.epoch, tuple(m.entries), m.mode, m.mtime)
                if m.link_group and same in linked:
                    os.link(linked[same], full, follow_symlinks=False)
                else:
                    write_file(cell, m, full)
                    set_times_and_mode(full, m)
                    linked[same] = full
            done += 1
        except Bad as why:
            complain("%s: %s" % (show(path), why))
    # From the deepest up, for writing into a folder changes its time and its mode may forbid it.
    for path in reversed(paths):
        if tree[path].kind == FOLDER:
            set_times_and_mode(os.path.join(out, path), tree[path])
    if root is not None:
        set_times_and_mode(out, root)
    return done


def verify(cell, newest_only, complain):
    """Opens every chunk of every version. Gives numbers of what was looked at."""
    tree, _ = cell.tree()
    current = {(m.file, m.hash) for m in tree.values()}
    counts = {"segments": len(cell.head.segments), "records": len(cell.records), "versions": 0, "files": len(tree)}
    chunks, size = set(), 0
    for m in cell.all_manifests():
        if newest_only and (m.file, m.hash) not in current:
            continue
        counts["versions"] += 1
        try:
            for length, data in cell.stretches(m):
                if data is not None:
                    size += length
            chunks.update(e.name for e in cell.entries(m) if isinstance(e, Chunk))
        except Bad as why:
            complain("%s, version %d: %s" % (show(m.name), m.version, why))
    counts.update(chunks=len(chunks), bytes=size)
    return counts


def find_chunk(cell, name):
    """(manifest, entry) of the first version that has this chunk, as data or as a list."""
    for m in cell.all_manifests():
        for entry in m.entries:
            if isinstance(entry, List) and entry.name == name:
                return m, entry
        try:
            for entry in cell.entries(m):
                if isinstance(entry, Chunk) and entry.name == name:
                    return m, entry
        except Bad:
            continue
    return None, None


def show_chunk(cell, text, sealed_only, out):
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise SystemExit(usage("a chunk's name has 64 hexadecimal digits"))
    name = bytes.fromhex(text)
    sealed = cell.chunks.read(name)
    if sealed_only:
        out.write(sealed)
        return
    for segment in cell.head.segments:
        if segment.name == name:
            out.write(open_segment(sealed, cell.keys))
            return
    m, entry = find_chunk(cell, name)
    if entry is None:
        raise Bad("no version in this catalog names chunk %s; --sealed gives its sealed bytes" % text)
    padded = open_chunk(cell.keys, m.epoch, entry.key, getattr(entry, "encoding", 0), sealed)
    out.write(padded[: entry.len] if isinstance(entry, Chunk) else padded)


def usage(text):
    print("reader: " + text, file=sys.stderr)
    return USAGE


def read_keys(args):
    if args.key_file:
        with open(args.key_file, encoding="ascii", errors="replace") as file:
            text = file.read(100).strip()
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            raise BadPhrase("a key file has 64 hexadecimal digits")
        return Keys(bytes.fromhex(text))
    if args.phrase_file == "-":
        return Keys(master_from_phrase(sys.stdin.read()))
    with open(args.phrase_file, encoding="utf-8", errors="replace") as file:
        return Keys(master_from_phrase(file.read()))


def read_head_file(args):
    paths = [args.head_file] if args.head_file else [os.path.join(s, "catalog.head") for s in args.state]
    for path in paths:
        if args.head_file or os.path.exists(path):
            with open(path, "rb") as file:
                return file.read(1024 * 1024 + 1)
    raise Bad("no catalog.head in %s; give one with --head-file" % " or ".join(args.state))


def parse(argv):
    parser = argparse.ArgumentParser(prog="reader.py", description="Reads what a Grove cell keeps, from its phrase.")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--phrase-file", metavar="F", help="file with the 24 words; - for standard input")
    secret.add_argument("--key-file", metavar="F", help="file with the master key in hexadecimal (.key)")
    parser.add_argument(
        "--state", metavar="DIR", required=True, action="append",
        help="a cell's state folder, or a folder of chunks; may be given several times",
    )
    parser.add_argument("--head-file", metavar="F", help="signed head; otherwise catalog.head in a state folder")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("list", help="print the tree")
    one.add_argument("--json", action="store_true", help="as a JSON array, paths also in hexadecimal")
    one = commands.add_parser("extract", help="rebuild the tree")
    one.add_argument("outdir", metavar="OUTDIR", help="a new or empty folder")
    commands.add_parser("head", help="print the head as JSON")
    one = commands.add_parser("chunk", help="write a chunk's bytes to standard output")
    one.add_argument("name", metavar="NAME", help="64 hexadecimal digits")
    one.add_argument("--sealed", action="store_true", help="as they are kept, not opened")
    one = commands.add_parser("verify", help="open everything, write nothing")
    one.add_argument("--newest", action="store_true", help="only the newest version of each file")
    return parser.parse_args(argv)


def show_head(head):
    print(json.dumps({
        "hash": head.hash.hex(),
        "owner": head.owner.hex(),
        "life": head.life,
        "seq": head.seq,
        "run": head.run.hex(),
        "parents": [parent.hex() for parent in head.parents],
        "segments": [{"name": segment.name.hex(), "len": segment.len} for segment in head.segments],
    }, indent=2))


def list_tree(cell, as_json):
    tree, _ = cell.tree()
    if as_json:
        print(json.dumps([describe(path, tree[path]) for path in sorted(tree)], indent=1))
        return
    for path in sorted(tree):
        m = tree[path]
        kind = {FILE: "-", SYMLINK: "l", FOLDER: "d"}[m.kind]
        target = " -> " + show(m.target) if m.kind == SYMLINK else ""
        sign, mtime = "-" if m.mtime < 0 else "", abs(m.mtime)
        time = "%s%d.%09d" % (sign, mtime // 10**9, mtime % 10**9)
        print("%s%04o %12d %s %s%s" % (kind, m.mode, m.size, time, show(path), target))


def run(args):
    complaints = []

    def complain(text):
        complaints.append(text)
        print("reader: " + text, file=sys.stderr)

    keys = read_keys(args)
    for state in args.state:
        if not os.path.isdir(state):
            raise NotADirectoryError(20, "is no folder", state)
    try:
        chunks = Chunks(args.state)
        head_bytes = read_head_file(args)
        if args.command == "head":
            head = Head(head_bytes)
            if head.owner != keys.id():
                raise Bad("the head is another cell's")
            show_head(head)
            return OK
        cell = Cell(keys, head_bytes, chunks)
    except Bad as why:
        complain(str(why))
        return NO_CATALOG
    for text in cell.problems:
        complain(text)
    try:
        if args.command == "list":
            list_tree(cell, args.json)
        elif args.command == "extract":
            print("%d written" % extract(cell, args.outdir, complain))
        elif args.command == "chunk":
            show_chunk(cell, args.name, args.sealed, sys.stdout.buffer)
        else:
            counts = verify(cell, args.newest, complain)
            print(", ".join("%d %s" % (count, what) for what, count in counts.items()))
    except Bad as why:
        complain(str(why))
    for text in chunks.problems:
        complain(text)
    return DAMAGED if complaints else OK


def main(argv=None):
    args = parse(argv)
    try:
        return run(args)
    except BadPhrase as why:
        print("reader: %s" % why, file=sys.stderr)
        return NO_PHRASE
    except OSError as why:
        print("reader: %s" % why, file=sys.stderr)
        return IO


if __name__ == "__main__":
    sys.exit(main())
