"""The independent reader against the vectors in docs/vectors, and its commands on a small cell made from them."""

import contextlib
import hashlib
import io
import json
import os
import stat
import struct
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import reader  # noqa: E402
from reader import Bad, Keys  # noqa: E402

VECTORS = os.path.join(HERE, "..", "..", "docs", "vectors")
MASTER = bytes(range(32))
KEYS = Keys(MASTER)


def load(name):
    with open(os.path.join(VECTORS, name), encoding="utf-8") as file:
        return json.load(file)


def pattern(length, seed=0):
    return bytes((i * 31 + (i >> 8) + seed) & 255 for i in range(length))


def padded(data):
    return data + bytes(reader.padded_len(len(data)) - len(data))


def unhex(text):
    return None if text is None else bytes.fromhex(text)


def entry_of(vector):
    if vector["kind"] == "hole":
        return reader.Hole(vector["len"])
    name, key = unhex(vector["name"]), unhex(vector["key"])
    if vector["kind"] == "chunk":
        return reader.Chunk(name, key, vector["encoding"], vector["len"])
    return reader.List(name, key, vector["entries"], vector["len"])


def extensions_of(vector):
    return [(one["tag"], unhex(one["bytes"])) for one in vector]


class Vectors(unittest.TestCase):
    def test_codec(self):
        r = reader.Reader(unhex(load("codec.json")["bytes"]))
        r.label("grove test")
        self.assertEqual((r.u8(), r.u16(), r.u32(), r.u64(), r.i64()), (7, 8, 9, 2**64 - 1, -11))
        self.assertEqual((r.short(), r.long(), r.raw(3)), (b"ab", b"cde", b"raw"))
        r.end()

    def test_keys(self):
        v = load("keys.json")
        self.assertEqual(unhex(v["master"]), MASTER)
        for one in v["identities"]:
            at = one["index"], one["epoch"]
            self.assertEqual(KEYS.identity_seed(*at).hex(), one["ed25519_seed"])
            self.assertEqual(KEYS.id(*at).hex(), one["id"])
            self.assertEqual(KEYS.x25519_secret(*at).hex(), one["x25519_secret"])
            self.assertEqual(KEYS.x25519_public(*at).hex(), one["x25519_public"])
        for one in v["chunk_roots"]:
            self.assertEqual(KEYS.chunk_root(one["epoch"]).hex(), one["root"])
        file_key = KEYS.file_key(unhex(v["salt"]))
        random = unhex(v["random"])
        self.assertEqual(file_key.hex(), v["file_key"])
        self.assertEqual(reader.commitment(file_key).hex(), v["commitment"])
        self.assertEqual(reader.content_part_key(file_key, random).hex(), v["content_part_key"])
        self.assertEqual(KEYS.owner_part_key(random).hex(), v["owner_part_key"])
        self.assertEqual(KEYS.segment_key(random).hex(), v["segment_key"])
        self.assertEqual(unhex(v["inode"]), struct.pack("<QQq", 7, 4711, -5))
        self.assertEqual(KEYS.link_group(unhex(v["inode"])).hex(), v["link_group"])
        self.assertEqual(KEYS.recovery_secret().hex(), v["recovery_secret"])
        self.assertEqual(KEYS.identity().sign(v["signed"].encode()).hex(), v["signature"])
        signature = unhex(v["signature"])
        self.assertTrue(reader.is_signed(KEYS.id(), b"grove test", signature))
        self.assertFalse(reader.is_signed(KEYS.id(), b"grove tesT", signature))

    def test_beacon(self):
        v = load("beacon.json")
        ann, bob = v["sender_index"], v["receiver_index"]
        key = reader.beacon_key(KEYS.id(ann), KEYS.id(bob), KEYS.x25519_secret(bob), KEYS.x25519_public(ann))
        self.assertEqual(key.hex(), v["key"])
        noise = pattern(438, 3)
        for one in v["beacons"]:
            datagram = unhex(one["bytes"])
            self.assertEqual(datagram[5], one["purpose"])
            read = reader.beacon_read(key, datagram, one["from"])
            self.assertEqual(read, (one["slot"], one["port"], one["number"]))
            self.assertEqual((datagram[6:22], datagram[74:]), (noise[6:22], noise[74:]))
            self.assertIsNone(reader.beacon_read(key, datagram, "192.168.1.8"))

    def test_keys_of_small_order_sign_nothing(self):
        for point in (bytes(32), b"\x01" + bytes(31), b"\xee" + b"\xff" * 30 + b"\x7f"):
            self.assertFalse(reader.is_signed(point, b"anything", point + bytes(32)))

    def test_phrase(self):
        v = load("keys.json")
        self.assertEqual(reader.phrase_of(MASTER), v["phrase"])
        for text in v["phrases_accepted"]:
            self.assertEqual(reader.master_from_phrase(text), MASTER)
        for text in v["phrases_refused"]:
            with self.assertRaises(reader.BadPhrase):
                reader.master_from_phrase(text)

    def test_padding(self):
        for length, expected in load("chunks.json")["padded_lens"]:
            self.assertEqual(reader.padded_len(length), expected)

    def test_chunks(self):
        v = load("chunks.json")
        for one in v["chunks"]:
            plain = padded(pattern(one["len"]))
            self.assertEqual(len(plain), one["padded_len"])
            key, name, sealed = reader.seal_chunk(KEYS, one["epoch"], plain)
            self.assertEqual((key.hex(), name.hex(), len(sealed)), (one["key"], one["name"], one["sealed_len"]))
            if one["sealed"] is not None:
                self.assertEqual(sealed.hex(), one["sealed"])
            self.assertEqual(reader.open_chunk(KEYS, one["epoch"], key, 0, sealed), plain)
            with self.assertRaises(Bad):
                reader.open_chunk(KEYS, one["epoch"] + 1, key, 0, sealed)
        flipped = bytearray(unhex(v["chunks"][0]["sealed"]))
        flipped[5] ^= 1
        with self.assertRaises(Bad):
            reader.open_chunk(KEYS, 0, unhex(v["chunks"][0]["key"]), 0, bytes(flipped))
        forged, key = unhex(v["forged"]["sealed"]), unhex(v["forged"]["key"])
        self.assertEqual(reader.seal_open(key, reader.chunk_aad(0), forged), pattern(128))
        with self.assertRaises(Bad):
            reader.open_chunk(KEYS, 0, key, 0, forged)

    def test_list(self):
        v = load("list.json")
        entries = [entry_of(one) for one in v["entries"]]
        self.assertEqual(reader.read_list(unhex(v["plain"])), entries)
        key, name, sealed = reader.seal_chunk(KEYS, 0, padded(unhex(v["plain"])))
        self.assertEqual((key.hex(), name.hex(), sealed.hex()), (v["key"], v["name"], v["sealed"]))
        self.assertEqual(reader.read_list(reader.open_chunk(KEYS, 0, key, 0, sealed)), entries)
        for plain in v["refused"]:
            with self.assertRaises(Bad):
                reader.read_list(unhex(plain))

    def test_proofs(self):
        v = load("proof.json")
        parties = [unhex(v[who]) for who in ("verifier", "prover", "owner")]
        for one in v["chunks"]:
            with self.subTest(one["len"]):
                sealed, root = pattern(one["len"], 3), unhex(one["root"])
                name = hashlib.sha256(sealed).digest()
                self.assertEqual(name.hex(), one["name"])
                self.assertEqual(reader.prove_whole(unhex(v["nonce"]), *parties, name, sealed).hex(), one["whole"])
                self.assertEqual(reader.chunk_root(sealed), root)
                for leaf in one["leaves"]:
                    at, path = leaf["index"], unhex(leaf["path"])
                    self.assertEqual(len(path), 1 + 32 * path[0])
                    hashes = [path[i : i + 32] for i in range(1, len(path), 32)]
                    data = sealed[at * 65536 : (at + 1) * 65536]
                    self.assertEqual(reader.root_by_leaf(len(sealed), at, hashes, data), root)
                    self.assertNotEqual(reader.root_by_leaf(len(sealed), at, hashes, data + b"x"), root)
                    try:
                        self.assertNotEqual(reader.root_by_leaf(len(sealed) + 1, at, hashes, data), root)
                    except Bad:
                        pass  # one more byte is one more leaf, and the path too short

    def test_manifests(self):
        v = load("manifests.json")
        for one in v["manifests"]:
            with self.subTest(one["about"]):
                signed, f = unhex(one["signed"]), one["fields"]
                m = reader.Manifest(signed, KEYS)
                self.assertEqual(m.hash.hex(), one["hash"])
                for field in ("owner", "file", "previous", "link_group", "salt", "target", "parent", "name"):
                    self.assertEqual(getattr(m, field), unhex(f[field]), field)
                for field in ("version", "life", "tombstone", "root", "size", "mtime_s", "mtime_ns", "mode", "epoch", "note"):
                    self.assertEqual(getattr(m, field), f[field], field)
                self.assertEqual(reader.KINDS[m.kind], f["kind"])
                self.assertEqual(m.entries, [entry_of(entry) for entry in f["entries"]])
                self.assertEqual(m.extensions, extensions_of(f["extensions"]))
                with self.assertRaises(Bad):
                    reader.Manifest(signed, Keys(bytes(32)))
        signed = unhex(v["manifests"][0]["signed"])
        for at in range(len(signed)):
            with self.assertRaises(Bad):
                reader.Manifest(signed[:at] + bytes([signed[at] ^ 64]) + signed[at + 1 :], KEYS)
        for one in v["refused"]:
            with self.subTest(one["about"]), self.assertRaises(Bad):
                reader.Manifest(unhex(one["signed"]), KEYS)

    def test_catalog(self):
        v = load("catalog.json")
        key = v["version_key"]
        self.assertEqual(
            reader.version_key(unhex(key["file"]), key["version"], unhex(key["hash"])).hex(), key["key"]
        )
        for segment in v["segments"]:
            sealed = unhex(segment["sealed"])
            self.assertEqual(reader.sha256(sealed).hex(), segment["name"])
            found = list(reader.read_segment(reader.open_segment(sealed, KEYS)))
            expected = [(one["seq"], unhex(one["key"]), unhex(one["body"])) for one in segment["records"]]
            self.assertEqual(found, expected)
            with self.assertRaises(Bad):
                reader.open_segment(sealed[:-1] + bytes([sealed[-1] ^ 1]), KEYS)
        h = v["head"]
        head = reader.Head(unhex(h["signed"]))
        self.assertEqual((head.hash.hex(), head.owner.hex(), head.run.hex()), (h["hash"], h["owner"], h["run"]))
        self.assertEqual((head.life, head.seq), (h["life"], h["seq"]))
        self.assertEqual([parent.hex() for parent in head.parents], h["parents"])
        self.assertEqual([(s.name.hex(), s.len) for s in head.segments], [(s["name"], s["len"]) for s in h["segments"]])
        self.assertEqual(head.extensions, extensions_of(h["extensions"]))
        for one in v["heads_refused"]:
            with self.subTest(one["about"]), self.assertRaises(Bad):
                reader.Head(unhex(one["signed"]))

    def test_segment_with_anything_after_its_end_is_refused(self):
        plain = reader.label("grove segment v1") + b"\0" + b"\1" + bytes(8) + b"\1k" + bytes(4)
        self.assertEqual(list(reader.read_segment(plain)), [(0, b"k", b"")])
        self.assertEqual(list(reader.read_segment(plain + bytes(9))), [(0, b"k", b"")])
        for tail in (b"\0\0\1", b"\2", b"\1"):
            with self.assertRaises(Bad):
                list(reader.read_segment(plain + tail))

    def test_pack(self):
        v = load("pack.json")
        for one in v["packs"]:
            data, pack = unhex(one["file"]), int(one["id"], 16)
            self.assertEqual(reader.read_pack_id(one["file_name"]), pack)
            found = list(reader.walk_pack(pack, data))
            expected = [(e["offset"], e["len"], unhex(e["name"])) for e in one["entries"]]
            self.assertEqual(found, expected)
            made = reader.pack_head(pack)
            for at, (offset, length, name) in enumerate(found):
                sealed = data[offset : offset + length]
                self.assertEqual(sealed, (b"gpkB" if at >= 32 else b"") + pattern(16 + at, at))
                self.assertEqual(reader.sha256(sealed), name)
                made += reader.entry_head(pack, len(made), at in (0, 32), name, length) + sealed
            self.assertEqual(made, data)
            at = one["damaged"]["zeroed_from"]
            damaged = (data[:at] + bytes(48) + data[at + 48 :])[:-1]
            left = [entry for i, entry in enumerate(expected) if i not in one["damaged"]["lost"]]
            self.assertEqual(list(reader.walk_pack(pack, damaged)), left)
            with self.assertRaises(Bad):
                list(reader.walk_pack(pack + 1, data))

    def test_cards(self):
        v = load("card.json")
        for one in v["cards"]:
            card = reader.Card(unhex(one["signed"]))
            for field in ("id", "x25519", "successor"):
                self.assertEqual(getattr(card, field), unhex(one[field]), field)
            for field in ("sequence", "name", "addresses", "relays"):
                self.assertEqual(getattr(card, field), one[field], field)
            self.assertEqual(card.extensions, extensions_of(one["extensions"]))
        for one in v["refused"]:
            with self.subTest(one["about"]), self.assertRaises(Bad):
                reader.Card(unhex(one["signed"]))

    def test_grants(self):
        v = load("grant.json")
        ticket, t = reader.Ticket(unhex(v["ticket"]["signed"])), v["ticket"]
        for field in ("hash", "creator", "recipient", "id", "root"):
            self.assertEqual(getattr(ticket, field), unhex(t[field]), field)
        for field in ("rights", "number", "granted", "expires"):
            self.assertEqual(getattr(ticket, field), t[field], field)
        self.assertEqual(ticket.extensions, extensions_of(t["extensions"]))
        data, expected = unhex(v["grants"][0]["bytes"]), v["grants"][0]["opened"]

        def opened(index=1, data=data, creator=0):
            return reader.Grant(
                data, KEYS.id(index), KEYS.x25519_secret(index), KEYS.id(creator), KEYS.x25519_public(creator)
            )

        grant = opened()
        self.assertEqual(grant.manifest_hash, unhex(expected["manifest"]))
        for field in ("file", "file_key", "commitment", "thumbnail"):
            self.assertEqual(getattr(grant, field), unhex(expected[field]), field)
        for field in ("version", "name", "media", "size"):
            self.assertEqual(getattr(grant, field), expected[field], field)
        holders = [reader.Holder(unhex(h["id"]), unhex(h["card"]) or b"") for h in expected["holders"]]
        self.assertEqual(grant.holders, holders)
        self.assertEqual(grant.share, (unhex(expected["share"]["id"]), expected["share"]["folders"]))
        self.assertEqual(grant.manifest.entries, [entry_of(one) for one in expected["entries"]])
        # As anyone else, from anyone else, with another one's secret, and with any byte changed.
        for who in ({"index": 2}, {"index": 0}, {"creator": 2}):
            with self.assertRaises(Bad):
                opened(**who)
        with self.assertRaises(Bad):
            reader.Grant(data, KEYS.id(1), KEYS.x25519_secret(2), KEYS.id(0), KEYS.x25519_public(0))
        with self.assertRaises(Bad):
            reader.Grant(data, KEYS.id(1), KEYS.x25519_secret(1), KEYS.id(0), KEYS.x25519_public(2))
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 0x40
            with self.assertRaises(Bad, msg=at):
                opened(data=bytes(changed))

        entries = [entry_of(one) for one in v["list"]]
        sums = [reader.ListSum(one["sealed_len"], one["chunks"], unhex(one["top"])) for one in v["sums"]]
        self.assertEqual(reader.list_sum(entries, sums[0].sealed_len), sums[0])
        self.assertEqual(grant.sums, sums)
        for one in v["proofs"]:
            proof, name, length = unhex(one["proof"]), unhex(one["name"]), one["sealed_len"]
            self.assertEqual(reader.root_by_proof(proof, name, length), ticket.root)
            self.assertNotEqual(reader.root_by_proof(proof, name, length + 1), ticket.root)
        taken = reader.Revocations(unhex(v["revocations"]["signed"]))
        self.assertEqual((taken.creator, taken.number), (ticket.creator, v["revocations"]["number"]))
        self.assertEqual(taken.revoked, [tuple(one) for one in v["revocations"]["revoked"]])
        self.assertTrue(taken.contains(ticket.number) and not taken.contains(ticket.number + 1))
        for one in v["refused_tickets"]:
            with self.assertRaises(Bad, msg=one["about"]):
                reader.Ticket(unhex(one["signed"]))

    def test_statements(self):
        v = load("statement.json")
        for one in v["statements"]:
            data = unhex(one["bytes"])
            found = reader.Statement(data)
            self.assertEqual([cell.hex() for cell in found.cells], one["cells"])
            self.assertEqual((found.hash.hex(), found.previous.hex()), (one["hash"], one["previous"]))
            self.assertEqual((found.sequence, found.lives), (one["sequence"], one["lives"]))
            self.assertEqual((found.start, found.until), (one["from"], one["until"]))
            self.assertEqual((found.stored, found.signed), (one["stored"], one["signed"]))
            self.assertEqual(found.extensions, extensions_of(one["extensions"]))
            for at in range(len(data)):
                changed = bytearray(data)
                changed[at] ^= 0x40
                with self.assertRaises(Bad, msg=at):
                    reader.Statement(bytes(changed))
        self.assertEqual(v["statements"][2]["previous"], v["statements"][1]["hash"])
        for one in v["refused"]:
            with self.assertRaises(Bad, msg=one["about"]):
                reader.Statement(unhex(one["bytes"]))
        settle = v["settle"]
        asked = reader.Settle(unhex(settle["request"]))
        answered = reader.Settle(unhex(settle["reply_with_life_2_that_disagrees_and_proposes"]))
        for field in ("counted", "waiting", "forfeited", "debt", "claimed", "time"):
            self.assertEqual((getattr(asked, field), getattr(answered, field)), (settle[field],) * 2)
        self.assertEqual((asked.life, asked.disagrees, answered.life, answered.disagrees), (1, False, 2, True))
        self.assertEqual((asked.wants, answered.wants), (True, False))
        self.assertEqual(reader.Statement(asked.newest).signed, [True, True])
        self.assertEqual((asked.proposal, reader.Statement(answered.proposal).signed), (b"", [False, True]))

    def test_invites(self):
        v = load("invite.json")

        def same(invite, one):
            for field in ("inviter", "x25519", "invite_id", "secret"):
                self.assertEqual(getattr(invite, field), unhex(one[field]), field)
            for field in ("role", "expires", "addresses", "relay"):
                self.assertEqual(getattr(invite, field), one[field], field)

        for one in v["invites"]:
            same(reader.Invite(one["text"]), one)
        for text in v["accepted_as_the_first"]:
            same(reader.Invite(text), v["invites"][0])
        for one in v["refused"]:
            with self.subTest(one["about"]), self.assertRaises(Bad):
                reader.Invite(one["text"])


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def write_pack(chunks_dir, pack, chunks):
    data = reader.pack_head(pack)
    for at, sealed in enumerate(chunks):
        data += reader.entry_head(pack, len(data), at == 0, reader.sha256(sealed), len(sealed)) + sealed
    write(os.path.join(chunks_dir, "packs", "%016x.pack" % pack), data)


def write_loose(chunks_dir, sealed):
    name = reader.sha256(sealed).hex()
    path = os.path.join(chunks_dir, name[:2], name)
    write(path, sealed)
    return path


class Commands(unittest.TestCase):
    """The cell of cell.json on disk: some chunks loose, some packed."""

    def setUp(self):
        self.v = load("cell.json")
        temp = tempfile.TemporaryDirectory()
        self.addCleanup(temp.cleanup)
        self.dir = temp.name
        self.state = os.path.join(self.dir, "state")
        self.phrase = os.path.join(self.dir, "phrase")
        write(self.phrase, load("keys.json")["phrase"].encode())
        write(os.path.join(self.state, "catalog.head"), unhex(self.v["head"]))
        self.segments = [unhex(one["sealed"]) for one in self.v["segments"]]
        self.chunks = [unhex(one) for one in self.v["chunks"]]
        chunks_dir = os.path.join(self.state, "chunks")
        self.loose = [write_loose(chunks_dir, one) for one in self.segments + self.chunks[:4]]
        write_pack(chunks_dir, 0x00ABCDEF01234567, self.chunks[4:])

    def run_reader(self, *words, state=None, phrase=None, options=()):
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        argv = ["--phrase-file", phrase or self.phrase, "--state", state or self.state, *options, *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = reader.main(argv)
        out.flush()
        return code, out.buffer.getvalue(), err.getvalue()

    def check_extracted(self, out, without=()):
        seen = []
        for one in self.v["tree"]:
            path = unhex(one["path"])
            full = os.path.join(os.fsencode(out), path)
            if path in without:
                self.assertFalse(os.path.lexists(full))
                continue
            seen.append(full)
            info = os.lstat(full)
            self.assertEqual(info.st_mtime_ns, one["mtime_s"] * 10**9 + one["mtime_ns"], path)
            if one["kind"] == "symlink":
                self.assertEqual(os.readlink(full), unhex(one["target"]))
                continue
            self.assertEqual(stat.S_IMODE(info.st_mode), one["mode"], path)
            self.assertEqual(stat.S_ISDIR(info.st_mode), one["kind"] == "folder", path)
            if one["kind"] == "file":
                with open(full, "rb") as file:
                    data = file.read()
                self.assertEqual((len(data), hashlib.sha256(data).hexdigest()), (one["size"], one["sha256"]), path)
        there = []
        for folder, folders, files in os.walk(os.fsencode(out)):
            there += [os.path.join(folder, name) for name in folders + files]
        self.assertEqual(sorted(there), sorted(seen))

    def test_list(self):
        code, out, err = self.run_reader("list", "--json")
        self.assertEqual((code, err), (reader.OK, ""))
        fields = ("kind", "mode", "size", "mtime_s", "mtime_ns", "version", "life", "file")
        found = [(one["path_hex"], one["target_hex"], *(one[f] for f in fields)) for one in json.loads(out)]
        self.assertEqual(found, [(one["path"], one["target"], *(one[f] for f in fields)) for one in self.v["tree"]])
        code, out, _ = self.run_reader("list")
        self.assertEqual(code, reader.OK)
        self.assertIn("caf\\xe9.txt", out.decode())

    def test_extract(self):
        out = os.path.join(self.dir, "out")
        code, _, err = self.run_reader("extract", out)
        self.assertEqual((code, err), (reader.OK, ""))
        self.check_extracted(out)
        self.assertEqual(stat.S_IMODE(os.stat(out).st_mode), 0o755)
        self.assertTrue(os.path.samefile(os.path.join(out, "one"), os.path.join(out, "two")))
        self.assertEqual(self.run_reader("extract", out)[0], reader.IO)

    def test_extract_from_a_peers_folder(self):
        head = os.path.join(self.dir, "a.head")
        os.rename(os.path.join(self.state, "catalog.head"), head)
        chunks = os.path.join(self.state, "chunks")
        self.assertEqual(self.run_reader("list", state=chunks)[0], reader.NO_CATALOG)
        out = os.path.join(self.dir, "out")
        code, _, err = self.run_reader("extract", out, state=chunks, options=("--head-file", head))
        self.assertEqual((code, err), (reader.OK, ""))
        self.check_extracted(out)

    def test_head(self):
        code, out, _ = self.run_reader("head")
        self.assertEqual(code, reader.OK)
        found = json.loads(out)
        self.assertEqual((found["owner"], found["life"], found["seq"]), (KEYS.id().hex(), 2, 7))
        self.assertEqual([one["len"] for one in found["segments"]], [len(one) for one in self.segments])

    def test_key_file_serves_like_the_phrase(self):
        key = os.path.join(self.dir, "key")
        write(key, MASTER.hex().encode())
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(reader.main(["--key-file", key, "--state", self.state, "head"]), reader.OK)
        self.assertIn(KEYS.id().hex(), out.getvalue())

    def test_verify(self):
        # Without --newest, older and deleted versions are looked at too.
        code, out, err = self.run_reader("verify", "--newest")
        self.assertEqual((code, err), (reader.OK, ""))
        code, more, err = self.run_reader("verify")
        self.assertEqual((code, err), (reader.OK, ""))
        self.assertNotEqual(out, more)

    def test_chunk(self):
        name = reader.sha256(self.chunks[0])
        code, sealed, _ = self.run_reader("chunk", name.hex(), "--sealed")
        self.assertEqual((code, sealed), (reader.OK, self.chunks[0]))
        code, plain, _ = self.run_reader("chunk", name.hex())
        self.assertEqual((code, plain), (reader.OK, pattern(3000, 2)))
        code, plain, _ = self.run_reader("chunk", reader.sha256(self.segments[0]).hex())
        self.assertEqual(code, reader.OK)
        self.assertEqual(len(list(reader.read_segment(plain))), len(self.v["records"]) - len(self.v["records"]) // 2)
        code, _, err = self.run_reader("chunk", "00" * 32)
        self.assertEqual(code, reader.DAMAGED)
        self.assertIn("missing", err)

    def test_damaged_chunk_costs_its_file_and_nothing_else(self):
        path = self.loose[len(self.segments)]
        with open(path, "r+b") as file:
            file.write(b"\0")
        out = os.path.join(self.dir, "out")
        code, _, err = self.run_reader("extract", out)
        self.assertEqual(code, reader.DAMAGED)
        self.assertIn("a.jpg", err)
        self.check_extracted(out, without=(b"photos/2024/a.jpg",))
        self.assertEqual(self.run_reader("verify")[0], reader.DAMAGED)
        # A good copy elsewhere mends it.
        more = os.path.join(self.dir, "more")
        write_loose(more, self.chunks[0])
        out = os.path.join(self.dir, "whole")
        code, _, err = self.run_reader("extract", out, options=("--state", more))
        self.assertEqual(code, reader.DAMAGED)
        self.assertIn("a copy of chunk", err)
        self.check_extracted(out)

    def test_missing_segment_and_foreign_head_are_told(self):
        os.unlink(self.loose[0])
        code, _, err = self.run_reader("list")
        self.assertEqual(code, reader.NO_CATALOG)
        self.assertIn(reader.sha256(self.segments[0]).hex(), err)
        other = os.path.join(self.dir, "other")
        write(other, reader.phrase_of(bytes(32)).encode())
        self.assertEqual(self.run_reader("head", phrase=other)[0], reader.NO_CATALOG)
        write(other, b"abandon abandon")
        self.assertEqual(self.run_reader("head", phrase=other)[0], reader.NO_PHRASE)
        self.assertEqual(self.run_reader("head", phrase=os.path.join(self.dir, "none"))[0], reader.IO)
        with self.assertRaises(SystemExit) as why:
            self.run_reader()
        self.assertEqual(why.exception.code, reader.USAGE)


if __name__ == "__main__":
    unittest.main()
