//! Test vectors of every format, in `docs/vectors/`: another implementation can be held against them, and a change of a
//! format is seen here.
//!
//! What follows from the fixed master key alone is made anew and compared byte for byte. Sealed parts hold randomness:
//! their committed bytes must open to the stated values. `GROVE_WRITE_VECTORS=1 cargo test --test vectors` writes all
//! files anew.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use grove::bounty::{FIGURE_MAX, Heard, Side, Statement, StatementBody};
use grove::card::{Card, CardBody, Extension as CardExtension, Invite, Role, Successor};
use grove::catalog::{
    CatalogError, Head, RecordKind, SegmentWriter, open_segment, read_segment, record_key, version_key,
};
use grove::chat::{self, Message, Receipt, Run};
use grove::codec::Writer;
use grove::friendship::{Friendship, Wish};
use grove::grant::{
    self, Holder, ListSum, Party, Place as TreePlace, Presented, Private, Range, Ranges, Revocations,
    RevocationsBody, Share, Ticket, TicketBody, safe_name,
};
use grove::id::{BodyHash, CellId, ChunkName, FileId, hex, unhex};
use grove::keys::{Identity, MasterKey, Secret, random, sha256};
use grove::manifest::{Check, Entry, Extension, FileTime, Kind, Manifest, OwnerPart, read_list, write_list};
use grove::proof::{self, Parties};
use grove::routes::beacon::{self, DATAGRAM_BYTES, Pair, Purpose, Said};
use grove::seal::{ENCODING_RAW, Sealer, padded_len};
use grove::store::{ChunkStore, DiskStore, PackId, Place, StoreError, StoreLimits};
use grove::sync::PeerRow;
use grove::wire::message::{BatchHead, Receipts, Reply, Request, Settlement};
use miniserde::json::{self, Value};

/// JSON in the order it is written.
enum Json {
    Null,
    Yes(bool),
    Number(i128),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

use Json::{Array, Null, Number, Object, Yes};

fn text(value: impl ToString) -> Json {
    Json::Text(value.to_string())
}

fn bytes(value: impl AsRef<[u8]>) -> Json {
    Json::Text(hex(value.as_ref()))
}

fn number(value: impl Into<i128>) -> Json {
    Number(value.into())
}

fn array(values: impl IntoIterator<Item = Json>) -> Json {
    Array(values.into_iter().collect())
}

impl Json {
    fn write(&self, indent: usize, to: &mut String) {
        let line = |to: &mut String, indent: usize| {
            to.push('\n');
            to.push_str(&"  ".repeat(indent));
        };
        match self {
            Null => to.push_str("null"),
            Yes(value) => write!(to, "{value}").unwrap(),
            Number(value) => write!(to, "{value}").unwrap(),
            Json::Text(value) => to.push_str(&json::to_string(value)),
            Array(values) if values.is_empty() => to.push_str("[]"),
            Array(values) => {
                to.push('[');
                for (at, value) in values.iter().enumerate() {
                    to.push_str(if at > 0 { "," } else { "" });
                    line(to, indent + 1);
                    value.write(indent + 1, to);
                }
                line(to, indent);
                to.push(']');
            }
            Object(fields) => {
                to.push('{');
                for (at, (name, value)) in fields.iter().enumerate() {
                    to.push_str(if at > 0 { "," } else { "" });
                    line(to, indent + 1);
                    write!(to, "\"{name}\": ").unwrap();
                    value.write(indent + 1, to);
                }
                line(to, indent);
                to.push('}');
            }
        }
    }
}

/// The committed file, from which sealed bytes are taken; `None` when all is written anew.
struct Committed(Option<Value>);

impl Committed {
    /// The bytes at `list[at].field`.
    fn sealed(&self, list: &str, at: usize, field: &str) -> Option<Vec<u8>> {
        let Value::Object(all) = self.0.as_ref()? else { return None };
        let Value::Array(items) = all.get(list)? else { return None };
        let Value::Object(item) = items.get(at)? else { return None };
        let Value::String(text) = item.get(field)? else { return None };
        unhex(text)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/vectors")
}

fn check(file: &str, make: impl Fn(&Committed) -> Json) {
    let path = folder().join(file);
    let is_writing = std::env::var_os("GROVE_WRITE_VECTORS").is_some_and(|value| value == "1");
    let found = fs::read_to_string(&path).unwrap_or_default();
    let committed = if is_writing { None } else { json::from_str(&found).ok() };
    let mut made = String::new();
    make(&Committed(committed)).write(0, &mut made);
    made.push('\n');
    if is_writing {
        fs::create_dir_all(folder()).unwrap();
        fs::write(&path, &made).unwrap();
        return;
    }
    let differs = made.lines().zip(found.lines()).position(|(a, b)| a != b);
    assert!(
        made == found,
        "{} line {}: the format has changed; write the vectors anew with GROVE_WRITE_VECTORS=1 if that is meant",
        path.display(),
        differs.map_or(0, |line| line + 1)
    );
}

fn master() -> MasterKey {
    MasterKey::from_bytes(std::array::from_fn(|i| i as u8))
}

fn identity() -> Identity {
    master().identity(0, 0)
}

fn times<const N: usize>(byte: u8) -> [u8; N] {
    [byte; N]
}

/// Bytes that a short rule gives.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + (i >> 8) + usize::from(seed)) as u8).collect()
}

const PATTERN_RULE: &str = "byte i is (i * 31 + floor(i / 256) + seed) mod 256";

#[test]
fn codec() {
    let mut all = Writer::with_label("grove test");
    all.u8(7).u16(8).u32(9).u64(u64::MAX).i64(-11).short(b"ab").long(b"cde").raw(b"raw");
    check("codec.json", |_| {
        Object(vec![
            (
                "about",
                text(
                    "label 'grove test', u8 7, u16 8, u32 9, u64 2^64 - 1, i64 -11, short 'ab', long 'cde', raw 'raw'",
                ),
            ),
            ("bytes", bytes(all.as_slice())),
        ])
    });
}

#[test]
fn keys() {
    let one_identity = |index: u32, epoch: u32| {
        let identity = master().identity(index, epoch);
        Object(vec![
            ("index", number(index)),
            ("epoch", number(epoch)),
            ("ed25519_seed", bytes(identity.seed().0)),
            ("id", bytes(identity.id().0)),
            ("x25519_secret", bytes(identity.x_secret().0)),
            ("x25519_public", bytes(identity.x_public())),
        ])
    };
    let file_key = master().file_key(&times(0x51));
    let inode = [7u64.to_le_bytes(), 4711u64.to_le_bytes(), (-5i64).to_le_bytes()].concat();
    let phrase = master().phrase().to_string();
    let words: Vec<&str> = phrase.split(' ').collect();
    let numbered: Vec<String> = words.iter().enumerate().map(|(i, w)| format!("{}. {w}", i + 1)).collect();
    let short: Vec<String> = words.iter().map(|w| w.chars().take(4).collect()).collect();
    let accepted = [phrase.clone(), phrase.to_uppercase(), numbered.join(", "), short.join("\n")];
    let mut exchanged = words.clone();
    exchanged.swap(3, 17);
    let refused = [words[1..].join(" "), exchanged.join(" "), phrase.replacen("liar", "liarx", 1)];
    for same in &accepted {
        assert_eq!(MasterKey::from_phrase(same).unwrap().as_bytes(), master().as_bytes());
    }
    for other in &refused {
        assert!(MasterKey::from_phrase(other).is_err());
    }
    check("keys.json", |_| {
        Object(vec![
            ("master", bytes(master().as_bytes())),
            ("phrase", text(&phrase)),
            ("phrases_accepted", array(accepted.iter().map(text))),
            ("phrases_refused", array(refused.iter().map(text))),
            ("identities", array([one_identity(0, 0), one_identity(1, 2)])),
            (
                "chunk_roots",
                array([0, 1].map(|epoch| {
                    Object(vec![("epoch", number(epoch)), ("root", bytes(master().chunk_root(epoch).0))])
                })),
            ),
            ("salt", bytes(times::<16>(0x51))),
            ("file_key", bytes(file_key.0.0)),
            ("commitment", bytes(file_key.commitment())),
            ("random", bytes(times::<32>(0x52))),
            ("content_part_key", bytes(file_key.content_part_key(&times(0x52)).0)),
            ("owner_part_key", bytes(master().owner_part_key(&times(0x52)).0)),
            ("segment_key", bytes(master().segment_key(&times(0x52)).0)),
            ("inode", bytes(&inode)),
            ("link_group", bytes(master().link_group(&inode))),
            ("recovery_secret", bytes(master().recovery_secret().0)),
            ("signed", text("grove test")),
            ("signature", bytes(identity().sign(b"grove test"))),
        ])
    });
}

/// Two cells of the master key, the second of index 1, in one local network.
#[test]
fn beacon() {
    let (ann, bob) = (identity(), master().identity(1, 0));
    let keys = ann.beacon_keys(&bob.id(), bob.x_public()).unwrap();
    let back = bob.beacon_keys(&ann.id(), ann.x_public()).unwrap();
    assert_eq!((&keys.ours, &keys.theirs), (&back.theirs, &back.ours));
    let noise: [u8; DATAGRAM_BYTES] = pattern(DATAGRAM_BYTES, 3).try_into().unwrap();
    let said = Said { port: 5679, number: (7 << 32) + 9 };
    let one = |purpose: Purpose, from: &str| {
        let from = from.parse().unwrap();
        let datagram = beacon::write(purpose, from, said, [&Pair::from(&back), &Pair::from(&keys)], &noise);
        assert_eq!(beacon::read(&datagram, from, &Pair::from(&back)), Some(said));
        Object(vec![
            ("purpose", number(purpose as u8)),
            ("from", text(from)),
            ("port", number(said.port)),
            ("number", number(said.number)),
            ("slot", number(1)),
            ("bytes", bytes(datagram)),
        ])
    };
    check("beacon.json", |_| {
        Object(vec![
            ("master", bytes(master().as_bytes())),
            ("sender_index", number(0)),
            ("receiver_index", number(1)),
            ("key", bytes(keys.ours.0)),
            ("noise", text(format!("{PATTERN_RULE}, seed 3"))),
            ("beacons", array([one(Purpose::Announce, "192.168.1.7"), one(Purpose::Answer, "fe80::1234")])),
        ])
    });
}

const PADDED: [usize; 22] = [
    0, 1, 127, 128, 129, 136, 137, 255, 256, 257, 1000, 1024, 4095, 4097, 65_535, 65_537, 70_000, 1_000_000,
    2_097_153, 4_063_233, 4_194_303, 4_194_304,
];

#[test]
fn chunks() {
    let one = |len: usize, epoch: u32| {
        let sealer = Sealer::new(&master(), epoch);
        let mut padded = pattern(len, 0);
        padded.resize(padded_len(len), 0);
        let chunk = sealer.seal(padded.clone());
        assert_eq!(sealer.open(&chunk.key, ENCODING_RAW, chunk.bytes.clone()).unwrap(), padded);
        Object(vec![
            ("len", number(len as i64)),
            ("epoch", number(epoch)),
            ("padded_len", number(padded.len() as i64)),
            ("key", bytes(chunk.key.0)),
            ("sealed_len", number(chunk.bytes.len() as i64)),
            ("name", bytes(chunk.name.0)),
            ("sealed", if chunk.bytes.len() < 300 { bytes(&chunk.bytes) } else { Null }),
        ])
    };
    let forged = grove::seal::seal_with(Secret(times(7)), pattern(128, 0));
    check("chunks.json", |_| {
        Object(vec![
            (
                "about",
                text("a file of 0 bytes has no chunk; plaintext follows the pattern with seed 0, then zeros"),
            ),
            ("pattern", text(PATTERN_RULE)),
            ("padded_lens", array(PADDED.map(|len| array([len, padded_len(len)].map(|n| number(n as i64)))))),
            (
                "chunks",
                array(
                    [(1, 0), (128, 0), (128, 1), (129, 0), (70_000, 0), (4_194_304, 0)]
                        .map(|(l, e)| one(l, e)),
                ),
            ),
            (
                "forged",
                Object(vec![
                    ("about", text("opens, but the key is not the one its bytes make: refused")),
                    ("key", bytes(forged.key.0)),
                    ("sealed", bytes(&forged.bytes)),
                ]),
            ),
        ])
    });
}

fn entry(entry: &Entry) -> Json {
    match entry {
        Entry::Chunk { name, key, encoding, len } => Object(vec![
            ("kind", text("chunk")),
            ("name", bytes(name.0)),
            ("key", bytes(key.0)),
            ("encoding", number(*encoding)),
            ("len", number(*len)),
        ]),
        Entry::Hole { len } => Object(vec![("kind", text("hole")), ("len", number(*len))]),
        Entry::List { name, key, entries, len } => Object(vec![
            ("kind", text("list")),
            ("name", bytes(name.0)),
            ("key", bytes(key.0)),
            ("entries", number(*entries)),
            ("len", number(*len)),
        ]),
    }
}

fn sample_entries() -> Vec<Entry> {
    let chunk = |name, key, len| Entry::Chunk {
        name: ChunkName(times(name)),
        key: Secret(times(key)),
        encoding: ENCODING_RAW,
        len,
    };
    vec![chunk(0x11, 0x21, 4_194_304), Entry::Hole { len: 8_388_608 }, chunk(0x12, 0x22, 70_000)]
}

#[test]
fn list() {
    let entries = sample_entries();
    let plain = write_list(&entries);
    let mut padded = plain.clone();
    padded.resize(padded_len(plain.len()), 0);
    assert_eq!(read_list(&padded).unwrap(), entries);
    let chunk = Sealer::new(&master(), 0).seal(padded);
    let nested =
        write_list(&[Entry::List { name: ChunkName(times(1)), key: Secret(times(2)), entries: 1, len: 1 }]);
    // A list entry has no key of its own in this form.
    assert!(read_list(&nested).is_err());
    let tail = [&plain[..], &[0, 0, 1]].concat();
    assert!(read_list(&tail).is_err());
    check("list.json", |_| {
        Object(vec![
            ("entries", array(entries.iter().map(entry))),
            ("plain", bytes(&plain)),
            ("key", bytes(chunk.key.0)),
            ("name", bytes(chunk.name.0)),
            ("sealed", bytes(&chunk.bytes)),
            ("refused", array([bytes(&nested), bytes(&tail), bytes(&plain[..plain.len() - 1])])),
        ])
    });
}

fn file() -> Manifest {
    let entries = sample_entries();
    Manifest {
        owner: identity().id(),
        file: FileId(times(0x31)),
        version: 2,
        life: 1,
        tombstone: false,
        kind: Kind::File,
        previous: Some(BodyHash(times(0x41))),
        root: 0,
        size: entries.iter().map(Entry::len).sum(),
        mtime: FileTime { s: -5, ns: 999_999_999 },
        mode: 0o4644,
        link_group: Some(times(0x61)),
        salt: times(0x51),
        epoch: 0,
        entries,
        target: Vec::new(),
        owner_part: OwnerPart {
            parent: FileId(times(0x32)),
            name: b"caf\xe9.txt".to_vec(),
            note: "a note \u{2618}".into(),
        },
        extensions: vec![Extension { tag: 9, must_understand: false, bytes: b"later".to_vec() }],
    }
}

fn bare(kind: Kind, name: &[u8]) -> Manifest {
    Manifest {
        version: 1,
        kind,
        previous: None,
        size: 0,
        mtime: FileTime { s: 1_700_000_000, ns: 123_456_789 },
        mode: 0o644,
        link_group: None,
        entries: Vec::new(),
        owner_part: OwnerPart { parent: FileId::ROOT, name: name.to_vec(), note: String::new() },
        extensions: Vec::new(),
        ..file()
    }
}

fn sample_manifests() -> Vec<(&'static str, Manifest)> {
    let listed =
        Entry::List { name: ChunkName(times(0x13)), key: Secret(times(0x23)), entries: 3, len: 12_652_912 };
    let target = b"../x\xff".to_vec();
    vec![
        (
            "a file with chunks, a hole, a name that is not UTF-8, a link group and an ignorable extension",
            file(),
        ),
        ("an empty file", bare(Kind::File, b"empty")),
        (
            "a file whose chunks stand in a list, under epoch 1",
            Manifest { size: 12_652_912, epoch: 1, entries: vec![listed], ..bare(Kind::File, b"large") },
        ),
        (
            "a symlink whose target is not UTF-8",
            Manifest { size: target.len() as u64, target, mode: 0o777, ..bare(Kind::Symlink, b"link") },
        ),
        ("a folder", Manifest { mode: 0o1755, ..bare(Kind::Folder, "Bücher".as_bytes()) }),
        (
            "a tombstone",
            Manifest {
                tombstone: true,
                version: 3,
                life: 2,
                previous: Some(BodyHash(times(0x42))),
                ..bare(Kind::File, b"gone")
            },
        ),
    ]
}

fn manifest_fields(manifest: &Manifest) -> Json {
    Object(vec![
        ("owner", bytes(manifest.owner.0)),
        ("file", bytes(manifest.file.0)),
        ("version", number(manifest.version)),
        ("life", number(manifest.life)),
        ("tombstone", Yes(manifest.tombstone)),
        ("kind", text(["file", "symlink", "folder"][manifest.kind as usize])),
        ("previous", manifest.previous.map_or(Null, |hash| bytes(hash.0))),
        ("root", number(manifest.root)),
        ("size", number(manifest.size)),
        ("mtime_s", number(manifest.mtime.s)),
        ("mtime_ns", number(manifest.mtime.ns)),
        ("mode", number(manifest.mode)),
        ("link_group", manifest.link_group.map_or(Null, bytes)),
        ("salt", bytes(manifest.salt)),
        ("epoch", number(manifest.epoch)),
        ("entries", array(manifest.entries.iter().map(entry))),
        ("target", bytes(&manifest.target)),
        ("parent", bytes(manifest.owner_part.parent.0)),
        ("name", bytes(&manifest.owner_part.name)),
        ("note", text(&manifest.owner_part.note)),
        ("extensions", extensions(manifest.extensions.iter().map(|e| (e.tag, &e.bytes[..])))),
    ])
}

fn extensions<'a>(all: impl Iterator<Item = (u16, &'a [u8])>) -> Json {
    array(all.map(|(tag, data)| Object(vec![("tag", number(tag)), ("bytes", bytes(data))])))
}

/// `signed` with some bytes of its body changed and signed again by its owner.
fn resigned(signed: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut body = signed[..signed.len() - 64].to_vec();
    change(&mut body);
    let signature = identity().sign(&body);
    [body, signature.to_vec()].concat()
}

/// Offsets in a manifest's body that has a previous version and a link group.
const FLAGS_AT: usize = 18 + 32 + 16 + 8 + 4;
const MTIME_NS_AT: usize = FLAGS_AT + 2 + 32 + 4 + 8 + 8;
const COMMITMENT_AT: usize = MTIME_NS_AT + 4 + 4 + 16 + 16;

fn refused_manifests() -> Vec<(&'static str, Vec<u8>)> {
    let signed = file().sign(&identity(), &master()).bytes;
    let mut newer = file();
    newer.extensions[0].must_understand = true;
    let mut unsigned = signed.clone();
    *unsigned.last_mut().unwrap() ^= 1;
    let mut wrong_size = file();
    wrong_size.size += 1;
    let name = |name: &[u8]| {
        let mut manifest = file();
        manifest.owner_part.name = name.to_vec();
        manifest.sign(&identity(), &master()).bytes
    };
    vec![
        ("an extension that must be understood", newer.sign(&identity(), &master()).bytes),
        ("a signature that does not fit", unsigned),
        ("entries that do not add up to the size", wrong_size.sign(&identity(), &master()).bytes),
        ("a commitment to another file key", resigned(&signed, |body| body[COMMITMENT_AT] ^= 1)),
        ("an unknown flag", resigned(&signed, |body| body[FLAGS_AT] |= 8)),
        ("an unknown kind", resigned(&signed, |body| body[FLAGS_AT + 1] = 3)),
        (
            "nanoseconds of a whole second",
            resigned(&signed, |body| {
                body[MTIME_NS_AT..MTIME_NS_AT + 4].copy_from_slice(&1_000_000_000u32.to_le_bytes());
            }),
        ),
        ("a name that is a path", name(b"a/b")),
        ("a name that is the folder above", name(b"..")),
        ("bytes after the end", resigned(&[&signed[..signed.len() - 64], &[0], &[0; 64]].concat(), |_| {})),
    ]
}

#[test]
fn manifests() {
    let refused = refused_manifests();
    check("manifests.json", |committed| {
        let cases = sample_manifests().into_iter().enumerate().map(|(at, (about, manifest))| {
            let signed = committed
                .sealed("manifests", at, "signed")
                .unwrap_or_else(|| manifest.sign(&identity(), &master()).bytes);
            assert_eq!(
                Manifest::open(&signed, &master(), Check::Signature).as_ref(),
                Ok(&manifest),
                "{about}"
            );
            Object(vec![
                ("about", text(about)),
                ("signed", bytes(&signed)),
                ("hash", bytes(sha256(&signed[..signed.len() - 64]))),
                ("fields", manifest_fields(&manifest)),
            ])
        });
        let refused = refused.iter().enumerate().map(|(at, (about, fresh))| {
            let signed = committed.sealed("refused", at, "signed").unwrap_or_else(|| fresh.clone());
            assert!(Manifest::open(&signed, &master(), Check::Signature).is_err(), "{about}");
            Object(vec![("about", text(about)), ("signed", bytes(&signed))])
        });
        Object(vec![("manifests", array(cases)), ("refused", array(refused))])
    });
}

type RecordRow = (u64, Vec<u8>, Vec<u8>);

fn records_of(segment: &[u8]) -> Vec<RecordRow> {
    let mut found = Vec::new();
    let plain = open_segment(segment, &master()).unwrap();
    read_segment(&plain, |seq, key, body| -> Result<(), CatalogError> {
        found.push((seq, key.to_vec(), body.to_vec()));
        Ok(())
    })
    .unwrap();
    found
}

fn segment_of(records: &[RecordRow]) -> Vec<u8> {
    let mut writer = SegmentWriter::default();
    records.iter().for_each(|(seq, key, body)| writer.add(*seq, key, body));
    writer.seal(&master()).1
}

fn record(row: &RecordRow) -> Json {
    Object(vec![("seq", number(row.0)), ("key", bytes(&row.1)), ("body", bytes(&row.2))])
}

fn sample_head() -> Head {
    Head {
        owner: identity().id(),
        life: 2,
        seq: 7,
        run: times(0x71),
        parents: vec![BodyHash(times(0x72)), BodyHash(times(0x73))],
        segments: vec![(ChunkName(times(0x74)), 100), (ChunkName(times(0x75)), 4_194_320)],
        extensions: vec![Extension { tag: 1, must_understand: false, bytes: vec![1, 2] }],
    }
}

#[test]
fn catalog() {
    let key = |kind, name: &[u8]| record_key(kind, name);
    let segments: Vec<Vec<RecordRow>> = vec![
        vec![
            (5, key(RecordKind::Setting, b"name"), b"\"value\"".to_vec()),
            (6, key(RecordKind::RemoteOnly, &times::<16>(0x31)), Vec::new()),
            (7, vec![200, 1, 2], b"of a later version".to_vec()),
        ],
        vec![(u64::MAX >> 1, key(RecordKind::AuditRoot, &times::<32>(0x11)), pattern(1000, 3))],
    ];
    let (hash, head) = sample_head().sign(&identity());
    assert_eq!(Head::open(&head), Ok((hash, sample_head())));
    let mut newer = sample_head();
    newer.extensions[0].must_understand = true;
    let mut flipped = head.clone();
    flipped[20] ^= 1;
    let refused = [
        ("an extension that must be understood", newer.sign(&identity()).1),
        ("life 0", Head { life: 0, ..sample_head() }.sign(&identity()).1),
        ("sequence 0", Head { seq: 0, ..sample_head() }.sign(&identity()).1),
        (
            "too many parents",
            Head { parents: vec![BodyHash(times(1)); 65], ..sample_head() }.sign(&identity()).1,
        ),
        ("a segment that is too long", {
            Head { segments: vec![(ChunkName(times(1)), 4_194_321)], ..sample_head() }.sign(&identity()).1
        }),
        ("another owner", flipped),
    ];
    check("catalog.json", |committed| {
        let segments = segments.iter().enumerate().map(|(at, records)| {
            let sealed = committed.sealed("segments", at, "sealed").unwrap_or_else(|| segment_of(records));
            assert_eq!(&records_of(&sealed), records);
            Object(vec![
                ("sealed", bytes(&sealed)),
                ("name", bytes(sha256(&sealed))),
                ("records", array(records.iter().map(record))),
            ])
        });
        let version = version_key(FileId(times(0x31)), 0x0102, BodyHash(times(0x41)));
        Object(vec![
            (
                "version_key",
                Object(vec![
                    ("file", bytes(times::<16>(0x31))),
                    ("version", number(0x0102)),
                    ("hash", bytes(times::<32>(0x41))),
                    ("key", bytes(version)),
                ]),
            ),
            ("segments", array(segments)),
            (
                "head",
                Object(vec![
                    ("signed", bytes(&head)),
                    ("hash", bytes(hash.0)),
                    ("owner", bytes(identity().id().0)),
                    ("life", number(2)),
                    ("seq", number(7)),
                    ("run", bytes(times::<16>(0x71))),
                    ("parents", array(sample_head().parents.iter().map(|parent| bytes(parent.0)))),
                    (
                        "segments",
                        array(
                            sample_head().segments.iter().map(|(name, len)| {
                                Object(vec![("name", bytes(name.0)), ("len", number(*len))])
                            }),
                        ),
                    ),
                    ("extensions", extensions([(1, &[1u8, 2][..])].into_iter())),
                ]),
            ),
            (
                "heads_refused",
                array(refused.iter().map(|(about, signed)| {
                    assert!(Head::open(signed).is_err(), "{about}");
                    Object(vec![("about", text(about)), ("signed", bytes(signed))])
                })),
            ),
        ])
    });
}

struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("grove-vectors-{}", hex(&random::<8>())));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn store(&self) -> DiskStore {
        let limits = StoreLimits { reserve_percent: 0, reserve_bytes_min: 0, ..StoreLimits::default() };
        DiskStore::open(&self.0, limits).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Two appends of 32 chunks each; the second one's chunks hold bytes that look like a mark.
fn pack_chunks() -> Vec<Vec<u8>> {
    let mark = |at: usize| if at >= 32 { b"gpkB".to_vec() } else { Vec::new() };
    (0..64).map(|at| [mark(at), pattern(16 + at, at as u8)].concat()).collect()
}

fn new_pack() -> (String, Vec<u8>) {
    let temp = Temp::new();
    let store = temp.store();
    let mut found = None;
    for batch in pack_chunks().chunks(32) {
        let staged =
            batch.iter().map(|sealed| store.stage(ChunkName(sha256(sealed)), sealed).unwrap()).collect();
        match store.commit(staged).unwrap()[0] {
            Place::Pack { pack, .. } => found = Some(pack),
            Place::Loose => panic!("32 small chunks go into a pack"),
        }
    }
    let name = format!("{}.pack", found.unwrap());
    let bytes = fs::read(temp.0.join("packs").join(&name)).unwrap();
    (name, bytes)
}

/// What the store finds in a pack: name, offset and length of each entry.
fn scan(name: &str, pack: &[u8]) -> Vec<(ChunkName, u64, u32)> {
    let temp = Temp::new();
    fs::create_dir_all(temp.0.join("packs")).unwrap();
    fs::write(temp.0.join("packs").join(name), pack).unwrap();
    let id: PackId = name.strip_suffix(".pack").unwrap().parse().unwrap();
    let mut found = Vec::new();
    let see = &mut |held: grove::store::Held| -> Result<(), StoreError> {
        match held.place {
            Place::Pack { pack, offset } if pack == id => found.push((held.name, offset, held.len)),
            other => panic!("{other:?}"),
        }
        Ok(())
    };
    temp.store().scan_pack(id, see).unwrap();
    found
}

#[test]
fn pack() {
    check("pack.json", |committed| {
        let kept = committed.sealed("packs", 0, "file").zip(committed.sealed("packs", 0, "id"));
        let (name, pack) = match kept {
            Some((pack, id)) => (format!("{}.pack", hex(&id)), pack),
            None => new_pack(),
        };
        let chunks = pack_chunks();
        let found = scan(&name, &pack);
        assert_eq!(found.len(), chunks.len());
        for ((name, offset, len), sealed) in found.iter().zip(&chunks) {
            assert_eq!(name.0, sha256(sealed));
            assert_eq!(&pack[*offset as usize..][..*len as usize], &sealed[..]);
        }
        // The head of entry 3 is gone, and the last entry is cut off.
        let mut damaged = pack.clone();
        let zeroed = found[3].1 as usize - 48;
        damaged[zeroed..zeroed + 48].fill(0);
        damaged.truncate(pack.len() - 1);
        let mut left = found.clone();
        left.remove(3);
        left.pop();
        assert_eq!(scan(&name, &damaged), left);
        let id = name.strip_suffix(".pack").unwrap();
        Object(vec![
            ("pattern", text(PATTERN_RULE)),
            (
                "about",
                text(
                    "sealed bytes of entry i: 'gpkB' from i = 32 on, then 16 + i bytes of the pattern with seed i; entries 0 and 32 begin an append",
                ),
            ),
            (
                "packs",
                array([Object(vec![
                    ("id", text(id)),
                    ("file_name", text(&name)),
                    ("file", bytes(&pack)),
                    (
                        "entries",
                        array(found.iter().map(|(name, offset, len)| {
                            Object(vec![
                                ("name", bytes(name.0)),
                                ("offset", number(*offset)),
                                ("len", number(*len)),
                            ])
                        })),
                    ),
                    (
                        "damaged",
                        Object(vec![
                            (
                                "about",
                                text(
                                    "with 48 bytes zeroed from here on and the file one byte shorter, all entries are found but these",
                                ),
                            ),
                            ("zeroed_from", number(zeroed as i64)),
                            ("lost", array([number(3), number(63)])),
                        ]),
                    ),
                ])]),
            ),
        ])
    });
}

fn sample_cards() -> Vec<(&'static str, CardBody)> {
    let full = CardBody {
        id: identity().id(),
        x25519: *identity().x_public(),
        name: "attic-pi \u{2618}".into(),
        addresses: vec!["192.168.1.7:5679".into(), "[fe80::1]:5679".into(), "attic.example:1".into()],
        relays: vec!["ws://relay.example:5680/".into()],
        sequence: 7,
        successor: Some(Successor::sign(&master().identity(0, 1), &identity().id())),
        extensions: vec![CardExtension { tag: 3, must_understand: false, bytes: b"later".to_vec() }],
    };
    let plain = CardBody {
        name: "pi".into(),
        addresses: vec![],
        relays: vec![],
        sequence: 0,
        successor: None,
        extensions: vec![],
        ..full.clone()
    };
    vec![("with everything", full), ("with nothing", plain)]
}

#[test]
fn card() {
    let (_, full) = sample_cards().remove(0);
    let sign = |body: CardBody| Card::sign(&identity(), body).unwrap().to_bytes();
    let signed = sign(full.clone());
    let mut newer = full.clone();
    newer.extensions[0].must_understand = true;
    let mut forced = full.clone();
    forced.successor = Some(Successor::sign(&master().identity(0, 1), &CellId(times(1))));
    let mut flipped = signed.clone();
    flipped[90] ^= 1;
    let control = resigned(&signed, |body| body[14 + 32 + 32 + 8 + 1] = 7);
    let address = resigned(&signed, |body| {
        let at = body.windows(4).position(|four| four == b":567").unwrap();
        body[at] = b'.';
    });
    let refused = [
        ("an extension that must be understood", sign(newer)),
        ("a successor that has not agreed", sign(forced)),
        ("a changed byte", flipped),
        ("a control character in the name", control),
        ("an address without a port", address),
        ("bytes after the end", resigned(&[&signed[..signed.len() - 64], &[0], &[0; 64]].concat(), |_| {})),
    ];
    check("card.json", |_| {
        let cards = sample_cards().into_iter().map(|(about, body)| {
            let signed = sign(body.clone());
            assert_eq!(*Card::from_bytes(&signed).unwrap(), body);
            Object(vec![
                ("about", text(about)),
                ("signed", bytes(&signed)),
                ("id", bytes(body.id.0)),
                ("x25519", bytes(body.x25519)),
                ("sequence", number(body.sequence)),
                ("name", text(&body.name)),
                ("addresses", array(body.addresses.iter().map(text))),
                ("relays", array(body.relays.iter().map(text))),
                ("successor", body.successor.as_ref().map_or(Null, |next| bytes(next.id().0))),
                ("extensions", extensions(body.extensions.iter().map(|e| (e.tag, &e.bytes[..])))),
            ])
        });
        let refused = refused.iter().map(|(about, signed)| {
            assert!(Card::from_bytes(signed).is_err(), "{about}");
            Object(vec![("about", text(about)), ("signed", bytes(signed))])
        });
        Object(vec![("cards", array(cards)), ("refused", array(refused))])
    });
}

#[test]
fn invite() {
    let full = Invite {
        inviter: identity().id(),
        x25519: *identity().x_public(),
        invite_id: times(5),
        secret: Secret(times(6)),
        role: Role::Friend,
        expires: 1_800_000_000,
        addresses: vec!["192.168.1.7:5679".into(), "[fd7a::1]:5679".into()],
        relay: Some("wss://relay.example/".into()),
    };
    let plain = Invite { role: Role::Peer, addresses: vec![], relay: None, ..full.clone() };
    let written = full.to_string();
    let wrapped: Vec<String> =
        written.as_bytes().chunks(60).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
    let accepted = [written.to_uppercase(), format!("  {}\n", wrapped.join("\r\n  "))];
    let mut changed = written.clone().into_bytes();
    changed[40] = if changed[40] == b'a' { b'b' } else { b'a' };
    let refused = [
        ("a changed letter", String::from_utf8(changed).unwrap()),
        ("a letter too few", written[..written.len() - 1].to_owned()),
        ("letters too many", format!("{written}aaa")),
        ("a letter that none has", written.replacen(':', ":1", 1)),
        ("no invite", written[6..].to_owned()),
        ("a later version", written.replacen("grove:a", "grove:b", 1)),
    ];
    check("invite.json", |_| {
        let invites = [&full, &plain].map(|invite| {
            let written = invite.to_string();
            assert_eq!(written.parse().as_ref(), Ok(invite));
            Object(vec![
                ("text", text(written)),
                ("inviter", bytes(invite.inviter.0)),
                ("x25519", bytes(invite.x25519)),
                ("invite_id", bytes(invite.invite_id)),
                ("secret", bytes(invite.secret.0)),
                ("role", number(if invite.role == Role::Friend { 1 } else { 0 })),
                ("expires", number(invite.expires)),
                ("addresses", array(invite.addresses.iter().map(text))),
                ("relay", invite.relay.as_ref().map_or(Null, text)),
            ])
        });
        for same in &accepted {
            assert_eq!(same.parse().as_ref(), Ok(&full));
        }
        let refused = refused.iter().map(|(about, written)| {
            assert!(written.parse::<Invite>().is_err(), "{about}");
            Object(vec![("about", text(about)), ("text", text(written))])
        });
        Object(vec![
            ("invites", array(invites)),
            ("accepted_as_the_first", array(accepted.iter().map(text))),
            ("refused", array(refused)),
        ])
    });
}

// ---- A grant ----

/// A list's chunks, and a file of one chunk, a hole, that list, and a short chunk.
fn granted_entries() -> (Vec<Entry>, Vec<Entry>) {
    let chunk = |name: u8, len| Entry::Chunk {
        name: ChunkName(times(name)),
        key: Secret(times(name + 100)),
        encoding: ENCODING_RAW,
        len,
    };
    let list = vec![chunk(1, 4_194_304), Entry::Hole { len: 5 }, chunk(2, 4_194_304), chunk(3, 1000)];
    let listed = Entry::List {
        name: ChunkName(times(9)),
        key: Secret(times(109)),
        entries: list.len() as u32,
        len: list.iter().map(Entry::len).sum(),
    };
    (list, vec![chunk(4, 4_194_304), Entry::Hole { len: 4096 }, listed, chunk(5, 77)])
}

fn granted_manifest() -> Manifest {
    let (_, entries) = granted_entries();
    let size = entries.iter().map(Entry::len).sum();
    Manifest { entries, size, ..bare(Kind::File, b"secret.jpg") }
}

fn sample_ticket(root: grant::Hash) -> TicketBody {
    TicketBody {
        creator: identity().id(),
        recipient: master().identity(1, 0).id(),
        id: times(7),
        root,
        rights: grant::READ,
        number: 1 << 32 | 5,
        granted: 1_800_000_000,
        expires: 1_800_086_400,
        extensions: vec![Extension { tag: 3, must_understand: false, bytes: b"later".to_vec() }],
    }
}

/// Sealed once: what is committed is read, not made.
fn new_grant(ticket: &Ticket, sums: &[ListSum]) -> Vec<u8> {
    let signed = granted_manifest().sign(&identity(), &master());
    let (manifest, recipient) = (granted_manifest(), master().identity(1, 0));
    let file_key = master().file_key(&manifest.salt);
    let card = Card::sign(&identity(), sample_cards().remove(1).1).unwrap();
    let private = Private {
        manifest: signed.hash,
        file: manifest.file,
        version: manifest.version,
        name: "photo.jpg".into(),
        kind: Kind::File,
        media: "image/jpeg".into(),
        size: manifest.size,
        commitment: file_key.commitment(),
        file_key: file_key.0,
        holders: vec![
            Holder { id: identity().id(), card: Some(card) },
            Holder { id: master().identity(2, 0).id(), card: None },
        ],
        thumbnail: vec![1, 2, 3],
        share: Some(Share { id: times(4), folders: vec!["holidays".into(), "2026".into()] }),
        extensions: vec![],
    };
    let recipient_id = recipient.id();
    let to = Party { id: &recipient_id, x25519: recipient.x_public() };
    grant::make(&identity(), to, ticket, &private, &signed.bytes, sums).unwrap()
}

fn private_fields(opened: &grant::Opened) -> Json {
    let private = &opened.private;
    let holder = |holder: &Holder| {
        let card = holder.card.as_ref().map_or(Null, |card| bytes(card.to_bytes()));
        Object(vec![("id", bytes(holder.id.0)), ("card", card)])
    };
    let share = private.share.as_ref().map_or(Null, |share| {
        Object(vec![("id", bytes(share.id)), ("folders", array(share.folders.iter().map(text)))])
    });
    Object(vec![
        ("manifest", bytes(private.manifest.0)),
        ("file", bytes(private.file.0)),
        ("version", number(private.version)),
        ("name", text(&private.name)),
        ("media", text(&private.media)),
        ("size", number(private.size)),
        ("file_key", bytes(private.file_key.0)),
        ("commitment", bytes(private.commitment)),
        ("holders", array(private.holders.iter().map(holder))),
        ("thumbnail", bytes(&private.thumbnail)),
        ("share", share),
        ("entries", array(opened.manifest.entries.iter().map(entry))),
    ])
}

fn tree_proofs(root: &grant::Hash, sums: &[ListSum]) -> Json {
    let (list, entries) = granted_entries();
    let places = [
        (TreePlace::Entry(0), 4, 4_194_320),
        (TreePlace::Entry(2), 9, sums[0].sealed_len),
        (TreePlace::InList { list: 2, entries: &list, at: 0 }, 1, 4_194_320),
        (TreePlace::InList { list: 2, entries: &list, at: 3 }, 3, padded_len(1000) as u32 + 16),
        (TreePlace::Entry(3), 5, 144),
    ];
    array(places.into_iter().map(|(place, name, len)| {
        let name = ChunkName(times(name));
        let proof = grant::prove(&entries, sums, place).unwrap();
        assert!(grant::is_member(root, &proof, &name, len));
        Object(vec![("name", bytes(name.0)), ("sealed_len", number(len)), ("proof", bytes(proof))])
    }))
}

#[test]
fn grants() {
    let (list, entries) = granted_entries();
    let sums = [ListSum::of(&list, padded_len(write_list(&list).len()) as u32 + 16)];
    let root = grant::root(&entries, &sums).unwrap();
    let ticket = Ticket::sign(&identity(), sample_ticket(root)).unwrap();
    let mut revoked = Ranges::default();
    revoked.add_range(Range { first: 1 << 32 | 1, last: 1 << 32 | 3 });
    revoked.add(1 << 32 | 5);
    let body = RevocationsBody { creator: identity().id(), number: 1 << 32 | 2, revoked, extensions: vec![] };
    let revocations = Revocations::sign(&identity(), body).unwrap();
    let (recipient, other) = (master().identity(1, 0), master().identity(2, 0));
    let weak = resigned(ticket.as_bytes(), |body| body[16 + 32..16 + 64].fill(0));
    let mut flipped = ticket.as_bytes().to_vec();
    flipped[16 + 64] ^= 1;
    let refused = [
        ("a recipient of small order", weak),
        ("a changed byte", flipped),
        ("rights not known", resigned(ticket.as_bytes(), |body| body[16 + 112] = 3)),
        ("a later version", resigned(ticket.as_bytes(), |body| body[15] = b'2')),
    ];
    let names = [
        "photo.jpg",
        "photo\u{202e}gpj.exe",
        "CON.txt",
        " a:b\\c. ",
        ".groveignore",
        "...",
        "..",
        "a/b",
        "",
        "a\0",
    ];
    check("grant.json", |committed| {
        let bytes_of = committed.sealed("grants", 0, "bytes").unwrap_or_else(|| new_grant(&ticket, &sums));
        let (me, me_id) = (identity(), identity().id());
        let creator = Party { id: &me_id, x25519: me.x_public() };
        let opened = grant::open(&bytes_of, &recipient, creator).unwrap();
        assert!(grant::open(&bytes_of, &other, creator).is_err());
        assert_eq!((&opened.ticket, &opened.lists[..]), (&ticket, &sums[..]));
        let caller = recipient.id();
        let presented =
            Presented { ticket: &ticket, caller: &caller, list: None, seen: 0, now: 1_800_000_000 };
        assert_eq!(grant::allows(presented), Ok(()));
        let list = Presented { list: Some(&revocations), ..presented };
        assert_eq!(grant::allows(list), Err(grant::GrantError::Revoked));
        let ticket_fields = Object(vec![
            ("signed", bytes(ticket.as_bytes())),
            ("hash", bytes(ticket.hash())),
            ("creator", bytes(ticket.creator.0)),
            ("recipient", bytes(ticket.recipient.0)),
            ("id", bytes(ticket.id)),
            ("root", bytes(ticket.root)),
            ("rights", number(ticket.rights)),
            ("number", number(ticket.number)),
            ("granted", number(ticket.granted)),
            ("expires", number(ticket.expires)),
            ("extensions", extensions(ticket.extensions.iter().map(|e| (e.tag, &e.bytes[..])))),
        ]);
        let range = |range: &Range| array([number(range.first), number(range.last)]);
        let sum = |sum: &ListSum| {
            Object(vec![
                ("sealed_len", number(sum.sealed_len)),
                ("chunks", number(sum.chunks)),
                ("top", bytes(sum.top)),
            ])
        };
        Object(vec![
            (
                "about",
                text("creator: index 0 of the master key 00 01 … 1f; recipient: index 1; another: index 2"),
            ),
            ("ticket", ticket_fields),
            (
                "grants",
                array([Object(vec![("bytes", bytes(&bytes_of)), ("opened", private_fields(&opened))])]),
            ),
            ("list", array(granted_entries().0.iter().map(entry))),
            ("sums", array(sums.iter().map(sum))),
            ("proofs", tree_proofs(&root, &sums)),
            (
                "revocations",
                Object(vec![
                    ("signed", bytes(revocations.as_bytes())),
                    ("creator", bytes(revocations.creator.0)),
                    ("number", number(revocations.number)),
                    ("revoked", array(revocations.revoked.as_slice().iter().map(range))),
                ]),
            ),
            (
                "refused_tickets",
                array(refused.iter().map(|(about, signed)| {
                    assert!(Ticket::from_bytes(signed).is_err(), "{about}");
                    Object(vec![("about", text(about)), ("signed", bytes(signed))])
                })),
            ),
            (
                "safe_names",
                array(names.iter().map(|name| {
                    let safe = safe_name(name.as_bytes()).map_or(Null, text);
                    Object(vec![("name", bytes(name)), ("safe", safe)])
                })),
            ),
        ])
    });
}

// ---- A whole small cell ----

/// Chunks and records of the cell, and what its tree must be.
#[derive(Default)]
struct Cell {
    chunks: Vec<Vec<u8>>,
    records: Vec<RecordRow>,
    tree: Vec<(Vec<u8>, Manifest, Option<Vec<u8>>)>,
}

fn id(byte: u8) -> FileId {
    FileId(times(byte))
}

impl Cell {
    fn chunk(&mut self, plain: &[u8]) -> Entry {
        let mut padded = plain.to_vec();
        padded.resize(padded_len(plain.len()), 0);
        let chunk = Sealer::new(&master(), 0).seal(padded);
        if !self.chunks.contains(&chunk.bytes) {
            self.chunks.push(chunk.bytes);
        }
        Entry::Chunk { name: chunk.name, key: chunk.key, encoding: ENCODING_RAW, len: plain.len() as u32 }
    }

    fn list(&mut self, entries: &[Entry]) -> Entry {
        let mut plain = write_list(entries);
        plain.resize(padded_len(plain.len()), 0);
        let chunk = Sealer::new(&master(), 0).seal(plain);
        self.chunks.push(chunk.bytes);
        let len = entries.iter().map(Entry::len).sum();
        Entry::List { name: chunk.name, key: chunk.key, entries: entries.len() as u32, len }
    }

    fn manifest(&self, file: FileId, parent: FileId, kind: Kind, name: &[u8]) -> Manifest {
        let mut manifest =
            Manifest { file, salt: sha256(&file.0)[..16].try_into().unwrap(), ..bare(kind, name) };
        manifest.mtime.ns = u32::from(file.0[0]);
        manifest.owner_part.parent = parent;
        manifest
    }

    fn file(&mut self, file: FileId, parent: FileId, name: &[u8], plain: &[u8]) -> Manifest {
        let mut manifest = self.manifest(file, parent, Kind::File, name);
        manifest.size = plain.len() as u64;
        if !plain.is_empty() {
            manifest.entries = vec![self.chunk(plain)];
        }
        manifest
    }

    /// Adds a version. Its sealed parts are random, so a committed one is put in its place by `take`.
    fn add(&mut self, manifest: &Manifest, take: &mut impl FnMut() -> Option<Vec<u8>>) {
        let signed = take().unwrap_or_else(|| manifest.sign(&identity(), &master()).bytes);
        assert_eq!(Manifest::open(&signed, &master(), Check::Signature).as_ref(), Ok(manifest));
        let hash = BodyHash(sha256(&signed[..signed.len() - 64]));
        let seq = self.records.len() as u64 + 1;
        self.records.push((seq, version_key(manifest.file, manifest.version, hash), signed));
    }

    fn expect(&mut self, path: &[u8], manifest: &Manifest, content: Option<Vec<u8>>) {
        self.tree.push((path.to_vec(), manifest.clone(), content));
    }
}

fn whole_cell(committed: &Committed) -> Cell {
    let mut taken = 0;
    let mut take = || {
        taken += 1;
        committed.sealed("records", taken - 1, "body")
    };
    let mut cell = Cell::default();

    let mut root = cell.manifest(FileId::ROOT, FileId::ROOT, Kind::Folder, b"GroveHome");
    root.mode = 0o755;
    cell.add(&root, &mut take);
    let mut photos = cell.manifest(id(0x10), FileId::ROOT, Kind::Folder, b"photos");
    photos.mode = 0o750;
    cell.add(&photos, &mut take);
    cell.expect(b"photos", &photos, None);
    let mut year = cell.manifest(id(0x08), id(0x10), Kind::Folder, b"2024");
    year.mode = 0o500;
    cell.add(&year, &mut take);
    cell.expect(b"photos/2024", &year, None);

    // A file that was changed; the older version comes last in the log.
    let mut changed = cell.file(id(0x11), id(0x08), b"a.jpg", &pattern(3000, 2));
    changed.version = 2;
    changed.mode = 0o4755;
    cell.add(&changed, &mut take);
    cell.expect(b"photos/2024/a.jpg", &changed, Some(pattern(3000, 2)));
    let older = cell.file(id(0x11), id(0x08), b"a.jpg", &pattern(100, 1));
    cell.add(&older, &mut take);
    // Two lives made a version 3; a later life counts.
    let mut first = cell.file(id(0x12), FileId::ROOT, b"caf\xe9.txt", b"of life 1");
    first.version = 3;
    let mut second = cell.file(id(0x12), FileId::ROOT, b"caf\xe9.txt", b"of life 2");
    (second.version, second.life) = (3, 2);
    cell.add(&second, &mut take);
    cell.add(&first, &mut take);
    cell.expect(b"caf\xe9.txt", &second, Some(b"of life 2".to_vec()));

    let mut empty = cell.file(id(0x13), FileId::ROOT, b"empty", b"");
    (empty.mtime.s, empty.mode) = (-5, 0o600);
    cell.add(&empty, &mut take);
    cell.expect(b"empty", &empty, Some(vec![]));
    let mut sparse = cell.file(id(0x14), FileId::ROOT, b"sparse", &pattern(200, 4));
    let end = cell.chunk(&pattern(10, 5));
    let list = [sparse.entries[0].clone(), Entry::Hole { len: 100_000 }, end];
    sparse.entries = vec![cell.list(&list), Entry::Hole { len: 50_000 }];
    sparse.size = 150_210;
    cell.add(&sparse, &mut take);
    let content = [pattern(200, 4), vec![0; 100_000], pattern(10, 5), vec![0; 50_000]].concat();
    cell.expect(b"sparse", &sparse, Some(content));
    let mut link = cell.manifest(id(0x15), id(0x10), Kind::Symlink, b"link");
    link.target = b"../x\xff".to_vec();
    (link.size, link.mode) = (5, 0o777);
    cell.add(&link, &mut take);
    cell.expect(b"photos/link", &link, None);
    for (file, name) in [(0x16, &b"one"[..]), (0x17, b"two")] {
        let mut linked = cell.file(id(file), FileId::ROOT, name, b"the same inode");
        linked.link_group = Some(times(0x61));
        linked.mtime.ns = 1;
        cell.add(&linked, &mut take);
        cell.expect(name, &linked, Some(b"the same inode".to_vec()));
    }

    // Deleted: the newest version is a tombstone.
    let gone = cell.file(id(0x18), FileId::ROOT, b"gone", b"deleted");
    cell.add(&gone, &mut take);
    let mut grave = Manifest { tombstone: true, version: 2, ..gone.clone() };
    (grave.size, grave.entries) = (0, vec![]);
    cell.add(&grave, &mut take);
    // Its folder was deleted: it goes to the top.
    let mut folder = cell.manifest(id(0x19), FileId::ROOT, Kind::Folder, b"old");
    (folder.tombstone, folder.version) = (true, 2);
    cell.add(&folder, &mut take);
    let orphan = cell.file(id(0x1a), id(0x19), b"orphan", b"left over");
    cell.add(&orphan, &mut take);
    cell.expect(b"orphan", &orphan, Some(b"left over".to_vec()));
    // Two files of one name: the higher id gets a mark.
    for (file, path) in [(0x1b, &b"same"[..]), (0x1c, b"same (1c1c1c1c)")] {
        let same = cell.file(id(file), FileId::ROOT, b"same", &[file]);
        cell.add(&same, &mut take);
        cell.expect(path, &same, Some(vec![file]));
    }
    // Two folders within each other: the lower id goes to the top.
    let ring = [(0x1d, 0x1e, &b"a"[..]), (0x1e, 0x1d, b"b")].map(|(file, parent, name)| {
        let folder = cell.manifest(id(file), id(parent), Kind::Folder, name);
        Manifest { mode: 0o755, ..folder }
    });
    ring.iter().for_each(|folder| cell.add(folder, &mut take));
    cell.expect(b"a", &ring[0], None);
    cell.expect(b"a/b", &ring[1], None);

    // A version that was forgotten, and records of other kinds.
    let forgotten = cell.file(id(0x1f), FileId::ROOT, b"forgotten", b"not here");
    cell.add(&forgotten, &mut take);
    let (seq, key, _) = cell.records.last().unwrap().clone();
    cell.records.push((seq + 1, key, vec![]));
    cell.records.push((seq + 2, record_key(RecordKind::RemoteOnly, &id(0x11).0), vec![1]));
    cell.records.push((seq + 3, vec![200], b"of a later version".to_vec()));
    cell.tree.sort_by(|a, b| a.0.cmp(&b.0));
    cell
}

#[test]
fn cell() {
    check("cell.json", |committed| {
        let cell = whole_cell(committed);
        // The newer half first: order is in the numbers.
        let middle = cell.records.len() / 2;
        let halves = [&cell.records[middle..], &cell.records[..middle]];
        let segments: Vec<Vec<u8>> = (0..2)
            .map(|at| committed.sealed("segments", at, "sealed").unwrap_or_else(|| segment_of(halves[at])))
            .collect();
        for (sealed, records) in segments.iter().zip(halves) {
            assert_eq!(records_of(sealed), records);
        }
        let head = Head {
            segments: segments
                .iter()
                .map(|sealed| (ChunkName(sha256(sealed)), sealed.len() as u32))
                .collect(),
            parents: vec![],
            extensions: vec![],
            ..sample_head()
        };
        let tree = cell.tree.iter().map(|(path, manifest, content)| {
            Object(vec![
                ("path", bytes(path)),
                ("file", bytes(manifest.file.0)),
                ("version", number(manifest.version)),
                ("life", number(manifest.life)),
                ("kind", text(["file", "symlink", "folder"][manifest.kind as usize])),
                ("mode", number(manifest.mode)),
                ("mtime_s", number(manifest.mtime.s)),
                ("mtime_ns", number(manifest.mtime.ns)),
                ("size", number(manifest.size)),
                ("target", bytes(&manifest.target)),
                ("sha256", content.as_ref().map_or(Null, |content| bytes(sha256(content)))),
            ])
        });
        Object(vec![
            (
                "about",
                text(
                    "a whole cell; GroveHome itself has mode 0755. 'records' repeats what the segments hold",
                ),
            ),
            ("head", bytes(head.sign(&identity()).1)),
            ("segments", array(segments.iter().map(|sealed| Object(vec![("sealed", bytes(sealed))])))),
            ("chunks", array(cell.chunks.iter().map(bytes))),
            ("tree", array(tree)),
            ("records", array(cell.records.iter().map(record))),
        ])
    });
}

#[test]
fn proofs() {
    let parties =
        Parties { verifier: identity().id(), prover: master().identity(1, 0).id(), owner: identity().id() };
    let nonce = times(0x77);
    let of = |len: usize| {
        let sealed = pattern(len, 3);
        let name = ChunkName(sha256(&sealed));
        let root = proof::root(&sealed);
        let whole = proof::whole(&nonce, &parties, &name, &sealed);
        let leaves = (0..proof::leaf_count(len as u32)).map(|index| {
            let proof = proof::leaf(&sealed, index).unwrap();
            assert!(proof::is_leaf_proof(&root, len as u32, index, &proof));
            let path = &proof[..1 + 32 * usize::from(proof[0])];
            Object(vec![("index", Number(index.into())), ("path", bytes(path))])
        });
        Object(vec![
            ("len", Number(len as i128)),
            ("name", bytes(name.0)),
            ("whole", bytes(whole)),
            ("root", bytes(root)),
            ("leaves", array(leaves)),
        ])
    };
    check("proof.json", |_| {
        Object(vec![
            (
                "about",
                text(
                    "the sealed bytes are byte i = (i * 31 + (i >> 8) + 3) mod 256; paths as in a proof, without the leaf",
                ),
            ),
            ("nonce", bytes(nonce)),
            ("verifier", bytes(parties.verifier.0)),
            ("prover", bytes(parties.prover.0)),
            ("owner", bytes(parties.owner.0)),
            ("chunks", array([0, 1, 65_535, 65_536, 65_537, 196_608, 400_000].map(of))),
        ])
    });
}

fn wish(wish: &Wish) -> Json {
    Object(vec![
        ("friend", Yes(wish.is_friend)),
        ("number", number(wish.number)),
        ("floor", number(wish.floor)),
    ])
}

fn friendship_fields(friendship: &Friendship) -> Vec<(&'static str, Json)> {
    vec![("ours", wish(&friendship.ours)), ("theirs", wish(&friendship.theirs))]
}

/// Records of peers in the catalog, and what friends say to each other on the wire.
#[test]
fn friends() {
    let (_, card) = sample_cards().remove(0);
    let card = Card::sign(&identity(), card).unwrap();
    let asked = Friendship {
        ours: Wish { is_friend: true, number: 1_800_000_000, floor: 0 },
        theirs: Wish { is_friend: false, number: 1_700_000_000, floor: 1_600_000_001 },
    };
    let friends = Friendship { theirs: Wish { is_friend: true, number: 1_800_000_007, floor: 0 }, ..asked };
    let peer = PeerRow::new(&card, 0);
    let peers = [
        ("a peer, version 1", peer.clone()),
        (
            "a friend from before wishes had numbers, version 1",
            PeerRow {
                friendship: Friendship::UNNUMBERED,
                is_favorite: true,
                quota_bytes: Some(1 << 40),
                ..peer.clone()
            },
        ),
        ("a peer that was asked for friendship, version 2", PeerRow { friendship: asked, ..peer.clone() }),
        (
            "a friend with a label, version 2",
            PeerRow { friendship: friends, name: "attic".into(), ..peer.clone() },
        ),
    ];
    let run = Run { life: 2, id: times(0x51) };
    let say = |number, text: &str, attachments: &[[u8; 16]]| Message {
        number,
        at: 1_800_000_000,
        text: text.into(),
        attachments: attachments.to_vec(),
    };
    let messages = [say(8, "The soup is on \u{1f372}", &[]), say(10, "", &[times(0x61), times(0x62)])];
    let body = chat::batch_bytes(&messages);
    let head = BatchHead { start: times(0x52), run, base: 7, len: body.len() as u32 };
    let receipts = Receipts { start: times(0x53), receipts: vec![Receipt { run, stored: 10, read: 8 }] };
    check("friends.json", |_| {
        let peers = peers.iter().map(|(about, peer)| {
            let record = peer.to_record();
            let read = PeerRow::from_record(&record, 0).unwrap();
            assert_eq!(PeerRow { last_seen: peer.last_seen, ..read }, *peer);
            let mut fields = vec![
                ("about", text(about)),
                ("record", bytes(&record)),
                ("id", bytes(peer.id.0)),
                ("name", text(&peer.name)),
                ("friend", Yes(peer.role() == Role::Friend)),
                ("favorite", Yes(peer.is_favorite)),
                ("quota", peer.quota_bytes.map_or(Null, number)),
            ];
            fields.extend(friendship_fields(&peer.friendship));
            Object(fields)
        });
        let requests =
            [Request::Friendship(asked), Request::Messages(head), Request::Receipts(receipts.clone())];
        let [asking, saying, telling] = requests.map(|request| {
            assert_eq!(Request::from_bytes(&request.to_bytes()).unwrap(), request);
            bytes(request.to_bytes())
        });
        let replies = [
            Reply::Friendship(friends),
            Reply::Messages(None),
            Reply::Messages(Some(10)),
            Reply::Receipts(receipts.clone()),
        ];
        let [answered, not_level, level, told] = replies.map(|reply| {
            assert_eq!(Reply::from_bytes(&reply.to_bytes()).unwrap(), reply);
            bytes(reply.to_bytes())
        });
        assert_eq!(chat::read_batch(head.base, &body).unwrap(), messages);
        let message = |message: &Message| {
            Object(vec![
                ("number", number(message.number)),
                ("time", number(message.at)),
                ("text", text(&message.text)),
                ("attachments", array(message.attachments.iter().map(bytes))),
            ])
        };
        let friendship =
            [friendship_fields(&asked), vec![("request", asking), ("reply_as_friends", answered)]];
        Object(vec![
            ("peers", array(peers)),
            ("friendship", Object(friendship.into_iter().flatten().collect())),
            (
                "messages",
                Object(vec![
                    ("start", bytes(head.start)),
                    ("life", number(run.life)),
                    ("run", bytes(run.id)),
                    ("base", number(head.base)),
                    ("messages", array(messages.iter().map(message))),
                    ("request", saying),
                    ("body", bytes(&body)),
                    ("reply_not_level", not_level),
                    ("reply_stored_10", level),
                ]),
            ),
            (
                "receipts",
                Object(vec![
                    ("start", bytes(receipts.start)),
                    ("stored", number(10)),
                    ("read", number(8)),
                    ("request", telling),
                    ("reply", told),
                ]),
            ),
        ])
    });
}

/// Two cells of the fixed master key, the one with the smaller id first.
fn two_cells() -> [Identity; 2] {
    let mut two = [identity(), master().identity(1, 0)];
    two.sort_by_key(|identity| identity.id());
    two
}

fn statement_fields(about: &str, statement: &Statement) -> Json {
    let body = statement.body();
    Object(vec![
        ("about", text(about)),
        ("bytes", bytes(statement.to_bytes())),
        ("hash", bytes(statement.hash())),
        ("cells", array(body.cells.iter().map(|cell| bytes(cell.0)))),
        ("sequence", number(body.seq)),
        ("previous", bytes(body.previous)),
        ("lives", array(body.lives.iter().map(|life| number(*life)))),
        ("from", number(body.from)),
        ("until", number(body.until)),
        ("stored", array(body.stored.iter().map(|figure| number(*figure)))),
        ("extensions", extensions(body.extensions.iter().map(|one| (one.tag, &one.bytes[..])))),
        ("signed", array([Side::Low, Side::High].map(|side| Yes(statement.is_signed_by(side))))),
    ])
}

/// What two cells sign of what they store for each other, and the request about it.
#[test]
fn statements() {
    let [low, high] = two_cells();
    let first = StatementBody {
        cells: [low.id(), high.id()],
        seq: 1,
        previous: [0; 32],
        lives: [1, 2],
        from: 0,
        until: 1_800_000_000,
        stored: [25_769_803_776, 0],
        extensions: vec![],
    };
    let half = Statement::sign(&high, first.clone()).unwrap();
    let whole = half.clone().signed_by(&low).unwrap();
    let next = StatementBody {
        seq: 3,
        previous: whole.hash(),
        from: first.until,
        until: first.until + 86_400,
        stored: [51_539_607_552, FIGURE_MAX],
        extensions: vec![Extension { tag: 7, must_understand: false, bytes: b"later".to_vec() }],
        ..first.clone()
    };
    let next = Statement::sign(&high, next).unwrap().signed_by(&low).unwrap();
    // Each field at its place in the body, as it must not be; all signed by the right cells.
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut body = whole.to_bytes();
        body.truncate(body.len() - 129);
        change(&mut body);
        [&body[..], &[3], &low.sign(&body), &high.sign(&body)].concat()
    };
    let put = |at: usize, what: &'static [u8]| {
        forged(&move |body: &mut Vec<u8>| body[at..at + what.len()].copy_from_slice(what))
    };
    let signers = whole.to_bytes().len() - 129;
    let with_byte = |at: usize, byte: u8| {
        let mut wrong = whole.to_bytes();
        wrong[at] = byte;
        wrong
    };
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("another version", put(18, b"2")),
        (
            "the cells in the other order",
            forged(&|body| {
                let (one, other) = (body[19..51].to_vec(), body[51..83].to_vec());
                body[19..51].copy_from_slice(&other);
                body[51..83].copy_from_slice(&one);
            }),
        ),
        ("number 0", put(83, &[0; 8])),
        ("life 0", put(123, &[0; 4])),
        ("a period that ends before it begins", put(131, &[0xff; 8])),
        ("a figure of 2^63", put(147, &[0, 0, 0, 0, 0, 0, 0, 0x80])),
        (
            "an extension that must be understood",
            forged(&|body| {
                body.pop();
                body.extend_from_slice(&[1, 7, 0, 1, 0, 0, 0, 0]);
            }),
        ),
        ("signed by nobody", with_byte(signers, 0)),
        ("signed by a third cell", with_byte(signers, 4)),
        ("a signature of the other one", {
            let mut wrong = whole.to_bytes();
            let (one, other) = (wrong[signers + 1..signers + 65].to_vec(), wrong[signers + 65..].to_vec());
            wrong[signers + 1..signers + 65].copy_from_slice(&other);
            wrong[signers + 65..].copy_from_slice(&one);
            wrong
        }),
        ("a figure changed after it was signed", with_byte(147, 1)),
        ("a byte too many", [&whole.to_bytes()[..], &[0]].concat()),
        ("cut off", whole.to_bytes()[..signers + 64].to_vec()),
    ];
    for (about, wrong) in &refused {
        assert!(Statement::from_bytes(wrong).is_err(), "{about}");
    }
    let heard = Heard {
        life: 1,
        measured: 25_769_803_776,
        waiting: 2,
        forfeited: 4,
        debt: 3,
        claimed: 5,
        unix_s: 1_800_000_001,
        disagrees: false,
    };
    let asked = Settlement { heard, wants: true, newest: whole.to_bytes(), proposal: vec![] };
    let disagreeing = Heard { life: 2, disagrees: true, ..heard };
    let answered =
        Settlement { heard: disagreeing, wants: false, newest: whole.to_bytes(), proposal: half.to_bytes() };
    check("statement.json", |_| {
        let request = Request::Settle(asked.clone());
        assert_eq!(Request::from_bytes(&request.to_bytes()).unwrap(), request);
        let reply = Reply::Settle(answered.clone());
        assert_eq!(Reply::from_bytes(&reply.to_bytes()).unwrap(), reply);
        let refused = refused
            .iter()
            .map(|(about, wrong)| Object(vec![("about", text(about)), ("bytes", bytes(wrong))]));
        Object(vec![
            (
                "statements",
                array([
                    statement_fields("proposed: the cell with the larger id has signed", &half),
                    statement_fields("the same, signed by both", &whole),
                    statement_fields("a later one, with a number left out and an extension", &next),
                ]),
            ),
            ("refused", array(refused)),
            (
                "settle",
                Object(vec![
                    ("life", number(heard.life)),
                    ("counted", number(heard.measured)),
                    ("waiting", number(heard.waiting)),
                    ("forfeited", number(heard.forfeited)),
                    ("debt", number(heard.debt)),
                    ("claimed", number(heard.claimed)),
                    ("time", number(heard.unix_s)),
                    ("request", bytes(request.to_bytes())),
                    ("reply_with_life_2_that_disagrees_and_proposes", bytes(reply.to_bytes())),
                ]),
            ),
        ])
    });
}
