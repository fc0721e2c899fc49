use super::*;
use crate::card::{Card, CardBody};
use crate::codec::Writer;
use crate::id::{BodyHash, CellId, ChunkName, FileId};
use crate::keys::{FileKey, Identity, MasterKey, Secret};
use crate::manifest::{
    ENTRIES_PER_LIST, Entry, Extension, FileTime, Kind, Manifest, OwnerPart, SignedManifest,
};
use crate::seal::CHUNK_BYTES;

const NOW: u64 = 1_800_000_000;
/// A point of order 1, one of order 4 and one of order 8: anybody can sign for them.
const WEAK: [&str; 3] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
];

fn master(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

fn ann() -> Identity {
    master(1).identity(0, 0)
}

fn bob() -> Identity {
    master(2).identity(0, 0)
}

fn eve() -> Identity {
    master(3).identity(0, 0)
}

fn card(of: &Identity) -> Card {
    let body = CardBody {
        id: of.id(),
        x25519: *of.x_public(),
        name: "attic".into(),
        addresses: vec!["192.168.1.7:5679".into()],
        relays: vec![],
        sequence: 1,
        successor: None,
        extensions: vec![],
    };
    Card::sign(of, body).unwrap()
}

fn chunk(byte: u8, len: u32) -> Entry {
    Entry::Chunk { name: ChunkName([byte; 32]), key: Secret([byte ^ 0xff; 32]), encoding: 0, len }
}

fn manifest(change: impl FnOnce(&mut Manifest)) -> SignedManifest {
    let mut manifest = Manifest {
        owner: ann().id(),
        file: FileId([5; 16]),
        version: 2,
        life: 1,
        tombstone: false,
        kind: Kind::File,
        previous: None,
        root: 0,
        size: CHUNK_BYTES as u64 + 4096 + 77,
        mtime: FileTime { s: 1, ns: 2 },
        mode: 0o644,
        link_group: None,
        salt: [6; 16],
        epoch: 0,
        entries: vec![chunk(1, CHUNK_BYTES as u32), Entry::Hole { len: 4096 }, chunk(2, 77)],
        target: vec![],
        owner_part: OwnerPart { parent: FileId([9; 16]), name: b"secret.jpg".to_vec(), note: "mine".into() },
        extensions: vec![],
    };
    change(&mut manifest);
    manifest.sign(&ann(), &master(1))
}

fn entries() -> Vec<Entry> {
    vec![chunk(1, CHUNK_BYTES as u32), Entry::Hole { len: 4096 }, chunk(2, 77)]
}

fn body() -> TicketBody {
    TicketBody {
        creator: ann().id(),
        recipient: bob().id(),
        id: [7; 16],
        root: root(&entries(), &[]).unwrap(),
        rights: READ,
        number: 1 << 32 | 5,
        granted: NOW - 10,
        expires: NOW + 10,
        extensions: vec![Extension { tag: 3, must_understand: false, bytes: b"later".to_vec() }],
    }
}

fn ticket() -> Ticket {
    Ticket::sign(&ann(), body()).unwrap()
}

fn private() -> Private {
    let file_key = master(1).file_key(&[6; 16]);
    Private {
        manifest: manifest_signed().hash,
        file: FileId([5; 16]),
        version: 2,
        name: "photo.jpg".into(),
        kind: Kind::File,
        media: "image/jpeg".into(),
        size: CHUNK_BYTES as u64 + 4096 + 77,
        commitment: file_key.commitment(),
        file_key: file_key.0,
        holders: vec![
            Holder { id: ann().id(), card: None },
            Holder { id: eve().id(), card: Some(card(&eve())) },
        ],
        thumbnail: vec![1, 2, 3],
        share: Some(Share { id: [4; 16], folders: vec!["holidays".into(), "2026".into()] }),
        extensions: vec![],
    }
}

/// One manifest for all: signing draws randomness.
fn manifest_signed() -> SignedManifest {
    static SIGNED: std::sync::OnceLock<SignedManifest> = std::sync::OnceLock::new();
    SIGNED.get_or_init(|| manifest(|_| {})).clone()
}

fn party(of: &Identity) -> (CellId, [u8; 32]) {
    (of.id(), *of.x_public())
}

fn granted(ticket: &Ticket, private: &Private) -> Result<Vec<u8>, GrantError> {
    let (id, x25519) = party(&bob());
    make(&ann(), Party { id: &id, x25519: &x25519 }, ticket, private, &manifest_signed().bytes, &[])
}

fn opened_by(bytes: &[u8], me: &Identity, creator: &Identity) -> Result<Opened, GrantError> {
    let (id, x25519) = party(creator);
    open(bytes, me, Party { id: &id, x25519: &x25519 })
}

/// Sealed as Ann could who keeps to no rule.
fn sealed_as_it_is(ticket: &Ticket, private: &[u8], key: &FileKey, manifest: &[u8]) -> Vec<u8> {
    private::seal(&ann(), bob().x_public(), ticket, private, key, manifest, &[]).unwrap()
}

/// Body of a ticket, unsigned bytes changed, signed anew by its creator.
fn resigned(signed: &[u8], by: &Identity, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = signed[..signed.len() - 64].to_vec();
    change(&mut body);
    let signature = by.sign(&body);
    [&body[..], &signature].concat()
}

fn put(at: usize, bytes: &[u8]) -> impl FnOnce(&mut Vec<u8>) + use<> {
    let bytes = bytes.to_vec();
    move |body: &mut Vec<u8>| body[at..at + bytes.len()].copy_from_slice(&bytes)
}

fn weak() -> impl Iterator<Item = [u8; 32]> {
    WEAK.iter().map(|text| crate::id::unhex(text).unwrap().try_into().unwrap())
}

// ---- Tickets ----

/// Where each field of the sample ticket begins: label 16, ids 32 each, id 16, root 32.
const CREATOR: usize = 16;
const RECIPIENT: usize = CREATOR + 32;
const ID: usize = RECIPIENT + 32;
const ROOT: usize = ID + 16;
const RIGHTS: usize = ROOT + 32;
const NUMBER: usize = RIGHTS + 1;
const GRANTED: usize = NUMBER + 8;
const EXPIRES: usize = GRANTED + 8;
const EXTENSIONS: usize = EXPIRES + 8;

#[test]
fn ticket_reads_back_and_names_nothing() {
    let ticket = ticket();
    assert_eq!(Ticket::from_bytes(ticket.as_bytes()), Ok(ticket.clone()));
    assert_eq!(*ticket, body());
    assert!(ticket.as_bytes().len() <= TICKET_BYTES_MAX);
    for secret in [&b"photo"[..], b"jpeg", &[5; 16], &77u32.to_le_bytes(), &private().size.to_le_bytes()] {
        assert!(!ticket.as_bytes().windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn each_field_of_a_ticket_that_is_changed_by_others_is_refused() {
    let signed = ticket().as_bytes().to_vec();
    let bad = GrantError::BadSignature;
    for (field, at, expected) in [
        ("recipient's id", ID, bad.clone()),
        ("root", ROOT, bad.clone()),
        ("number", NUMBER, bad.clone()),
        ("granted", GRANTED, bad.clone()),
        ("expires", EXPIRES, bad.clone()),
        ("tag of an extension", EXTENSIONS + 1, bad.clone()),
        ("bytes of an extension", EXTENSIONS + 8, bad.clone()),
        ("signature's R", signed.len() - 64, bad.clone()),
        ("signature's S", signed.len() - 32, bad),
        ("rights", RIGHTS, GrantError::Rights(READ ^ 2)),
        ("label", 3, GrantError::Malformed("another format's label")),
        ("version in the label", 15, GrantError::UnknownVersion),
        ("length of the label", 0, GrantError::Malformed("another format's label")),
        ("number of extensions", EXTENSIONS, GrantError::Malformed("ends early")),
    ] {
        let mut changed = signed.clone();
        changed[at] ^= 2;
        assert_eq!(Ticket::from_bytes(&changed), Err(expected), "{field}");
    }
    // Another sound key in place of one.
    for (field, at) in [("creator", CREATOR), ("recipient", RECIPIENT)] {
        let mut changed = signed.clone();
        changed[at..at + 32].copy_from_slice(&eve().id().0);
        assert_eq!(Ticket::from_bytes(&changed), Err(GrantError::BadSignature), "{field}");
    }
    for at in 0..signed.len() {
        let mut changed = signed.clone();
        changed[at] ^= 0x40;
        assert!(Ticket::from_bytes(&changed).is_err(), "byte {at}");
        assert!(Ticket::from_bytes(&signed[..at]).is_err());
    }
}

#[test]
fn each_impossible_value_in_a_ticket_is_refused_though_its_creator_signed_it() {
    let signed = ticket().as_bytes().to_vec();
    let malformed = GrantError::Malformed;
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    let cases: Vec<(&str, Change, GrantError)> = vec![
        ("a later version", Box::new(put(15, b"2")), GrantError::UnknownVersion),
        ("rights to nothing", Box::new(put(RIGHTS, &[0])), GrantError::Rights(0)),
        ("rights not known", Box::new(put(RIGHTS, &[3])), GrantError::Rights(3)),
        ("number 0", Box::new(put(NUMBER, &[0; 8])), malformed("a revocation number is 1 or more")),
        (
            "expires first",
            Box::new(put(EXPIRES, &1u64.to_le_bytes())),
            malformed("a ticket that expires before it is granted"),
        ),
        (
            "an extension that must be understood",
            Box::new(put(EXTENSIONS + 3, &[1])),
            malformed("made by a newer Grove, which this one must be updated to read"),
        ),
        ("a flag that is none", Box::new(put(EXTENSIONS + 3, &[2])), malformed("flag of an extension")),
        ("bytes after the end", Box::new(|body| body.push(0)), malformed("goes on after the end")),
        ("too long", Box::new(|body| body.resize(TICKET_BYTES_MAX, 0)), GrantError::TooLong("ticket")),
    ];
    for (about, change, expected) in cases {
        assert_eq!(Ticket::from_bytes(&resigned(&signed, &ann(), change)), Err(expected), "{about}");
    }
    assert_eq!(Ticket::from_bytes(&resigned(&signed, &eve(), |_| {})), Err(GrantError::BadSignature));
    assert_eq!(Ticket::sign(&eve(), body()), Err(GrantError::Mismatch("the creator is another cell")));
}

#[test]
fn weak_keys_are_refused_wherever_they_stand() {
    let signed = ticket().as_bytes().to_vec();
    for key in weak() {
        for at in [CREATOR, RECIPIENT] {
            let changed = resigned(&signed, &ann(), put(at, &key));
            assert_eq!(Ticket::from_bytes(&changed), Err(GrantError::WeakKey));
        }
        let list = resigned(list(&[5]).as_bytes(), &ann(), put(21, &key));
        assert_eq!(Revocations::from_bytes(&list), Err(GrantError::WeakKey));
    }
    // With R and the key of order 1, S = 0 fits every message by the loose rule.
    let mut forged = signed.clone();
    forged[CREATOR..CREATOR + 32].copy_from_slice(&weak().next().unwrap());
    let at = forged.len() - 64;
    forged[at..].fill(0);
    forged[at] = 1;
    assert_eq!(Ticket::from_bytes(&forged), Err(GrantError::WeakKey));
}

// ---- The private part ----

#[test]
fn recipient_opens_what_the_creator_granted() {
    let bytes = granted(&ticket(), &private()).unwrap();
    let opened = opened_by(&bytes, &bob(), &ann()).unwrap();
    assert_eq!((opened.ticket, opened.private), (ticket(), private()));
    assert_eq!(opened.manifest.entries, entries());
    for secret in [&b"photo"[..], b"secret", b"jpeg", b"holidays", &[5; 16], &[1; 32], &private().file_key.0]
    {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "nothing is told");
    }
}

#[test]
fn nobody_else_opens_a_grant_and_none_is_replayed() {
    let bytes = granted(&ticket(), &private()).unwrap();
    assert_eq!(opened_by(&bytes, &eve(), &ann()), Err(GrantError::WrongRecipient));
    assert_eq!(opened_by(&bytes, &ann(), &ann()), Err(GrantError::WrongRecipient));
    assert_eq!(opened_by(&bytes, &bob(), &eve()), Err(GrantError::NotFromCreator), "passed on as hers");
    // Eve has a ticket of her own, and puts Bob's private part behind it.
    let to_eve = Ticket::sign(&ann(), TicketBody { recipient: eve().id(), ..body() }).unwrap();
    let swapped = with_ticket(&bytes, &ticket(), to_eve.as_bytes());
    assert_eq!(opened_by(&swapped, &eve(), &ann()), Err(GrantError::NotOpened));
    // The same for a later ticket of Bob's: an old private part serves one ticket only.
    let later = Ticket::sign(&ann(), TicketBody { id: [8; 16], ..body() }).unwrap();
    let replayed = with_ticket(&bytes, &ticket(), later.as_bytes());
    assert_eq!(opened_by(&replayed, &bob(), &ann()), Err(GrantError::NotOpened));
    // Eve seals a part of her own behind Ann's ticket.
    let key = FileKey(private().file_key);
    let (plain, manifest) = (private().to_bytes(), manifest_signed().bytes);
    let forged = private::seal(&eve(), bob().x_public(), &ticket(), &plain, &key, &manifest, &[]).unwrap();
    assert_eq!(opened_by(&forged, &bob(), &ann()), Err(GrantError::NotFromCreator));
    // Ann's id with another X25519 key.
    let (id, x25519) = (ann().id(), *eve().x_public());
    let other = open(&bytes, &bob(), Party { id: &id, x25519: &x25519 });
    assert_eq!(other, Err(GrantError::NotFromCreator));
}

/// The grant with another ticket in place of its own, which has the same length.
fn with_ticket(grant: &[u8], old: &Ticket, new: &[u8]) -> Vec<u8> {
    assert_eq!(old.as_bytes().len(), new.len());
    let mut changed = grant.to_vec();
    let at = changed.windows(new.len()).position(|window| window == old.as_bytes()).unwrap();
    changed[at..at + new.len()].copy_from_slice(new);
    changed
}

#[test]
fn every_changed_byte_of_a_grant_is_refused() {
    let bytes = granted(&ticket(), &private()).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(opened_by(&changed, &bob(), &ann()).is_err(), "byte {at}");
        assert!(opened_by(&bytes[..at], &bob(), &ann()).is_err());
    }
    assert!(opened_by(&[&bytes[..], &[0]].concat(), &bob(), &ann()).is_err());
    let long = vec![0; GRANT_BYTES_MAX + 1];
    assert_eq!(opened_by(&long, &bob(), &ann()), Err(GrantError::TooLong("grant")));
}

type Corruptor = (&'static str, fn(&mut Private), GrantError);

#[test]
fn each_field_of_a_private_part_that_does_not_fit_is_refused_by_maker_and_recipient() {
    let mismatch = GrantError::Mismatch;
    let table: Vec<Corruptor> = vec![
        (
            "manifest",
            |p| p.manifest = BodyHash([1; 32]),
            mismatch("another manifest than the private part names"),
        ),
        ("file", |p| p.file = FileId([1; 16]), mismatch("the file's id")),
        ("version", |p| p.version += 1, mismatch("the version")),
        ("name", |p| p.name = "../../.ssh/authorized_keys".into(), GrantError::Name(NameError::Path)),
        ("no name", |p| p.name = String::new(), GrantError::Name(NameError::Empty)),
        ("kind", |p| p.kind = Kind::Symlink, GrantError::Malformed("only files are granted")),
        (
            "media",
            |p| p.media = "image/\njpeg".into(),
            GrantError::Malformed("a media type is short and printable"),
        ),
        ("size", |p| p.size += 1, mismatch("the size")),
        ("file key", |p| p.file_key.0[0] ^= 1, GrantError::Commitment),
        ("commitment", |p| p.commitment[0] ^= 1, GrantError::Commitment),
        ("holder's id", |p| p.holders[1].id = ann().id(), mismatch("the card of a holder")),
        (
            "holders",
            |p| p.holders = vec![Holder { id: ann().id(), card: None }; HOLDERS_MAX + 1],
            GrantError::TooLong("holders or thumbnail"),
        ),
        (
            "thumbnail",
            |p| p.thumbnail = vec![0; THUMBNAIL_BYTES_MAX + 1],
            GrantError::TooLong("holders or thumbnail"),
        ),
        ("folder", |p| p.share.as_mut().unwrap().folders[0] = "..".into(), GrantError::Name(NameError::Path)),
        (
            "folders",
            |p| p.share.as_mut().unwrap().folders = vec!["x".into(); FOLDERS_MAX + 1],
            GrantError::TooLong("path in a share"),
        ),
    ];
    for (field, corrupt, expected) in table {
        let mut changed = private();
        corrupt(&mut changed);
        assert_eq!(granted(&ticket(), &changed), Err(expected.clone()), "{field}, made");
        let key = FileKey(changed.file_key.clone());
        let bytes = sealed_as_it_is(&ticket(), &changed.to_bytes(), &key, &manifest_signed().bytes);
        assert_eq!(opened_by(&bytes, &bob(), &ann()), Err(expected), "{field}, opened");
    }
}

#[test]
fn key_that_both_parts_commit_to_but_the_manifest_does_not_is_refused() {
    let other = master(1).file_key(&[7; 16]);
    let changed = Private { commitment: other.commitment(), file_key: other.0, ..private() };
    assert_eq!(granted(&ticket(), &changed), Err(GrantError::Manifest(ManifestError::Commitment)));
}

#[test]
fn private_part_with_bytes_that_are_none_is_refused() {
    let plain = private().to_bytes();
    let name_at = plain.windows(5).position(|five| five == b"photo").unwrap();
    let kind_at = name_at + "photo.jpg".len();
    let share_at = plain.windows(16).position(|bytes| bytes == [4; 16]).unwrap() - 1;
    let malformed = GrantError::Malformed;
    for (about, at, byte, expected) in [
        ("a later version", 22, b'2', GrantError::UnknownVersion),
        ("another format", 5, b'x', malformed("another format's label")),
        ("a name that is not UTF-8", name_at, 0xff, GrantError::Name(NameError::NotUtf8)),
        ("a name with NUL", name_at, 0, GrantError::Name(NameError::Path)),
        ("a kind that is none", kind_at, 9, malformed("kind of a grant")),
        ("a share flag that is none", share_at, 2, malformed("neither with nor without a share")),
        ("an extension cut short", plain.len() - 1, 1, malformed("ends early")),
    ] {
        let mut changed = plain.clone();
        changed[at] = byte;
        let key = FileKey(private().file_key);
        let bytes = sealed_as_it_is(&ticket(), &changed, &key, &manifest_signed().bytes);
        assert_eq!(opened_by(&bytes, &bob(), &ann()), Err(expected), "{about}");
    }
}

#[test]
fn manifest_of_another_cell_or_of_no_file_is_refused() {
    let with = |signed: SignedManifest, change: fn(&mut Private)| {
        let mut private = Private { manifest: signed.hash, ..private() };
        change(&mut private);
        let (id, x25519) = party(&bob());
        make(&ann(), Party { id: &id, x25519: &x25519 }, &ticket(), &private, &signed.bytes, &[])
    };
    let mut forged = manifest_signed();
    forged.bytes = resigned(&forged.bytes, &eve(), |_| {});
    assert_eq!(with(forged, |_| {}), Err(GrantError::Manifest(ManifestError::Signature)));
    let mut foreign = manifest_signed();
    foreign.bytes = resigned(&foreign.bytes, &eve(), put(18, &eve().id().0));
    assert_eq!(with(foreign, |_| {}), Err(GrantError::Mismatch("the manifest is another cell's")));
    let deleted = manifest(|m| (m.tombstone, m.entries) = (true, vec![]));
    assert_eq!(with(deleted, |_| {}), Err(GrantError::Mismatch("the kind")));
    let longer = manifest(|m| (m.size, m.entries) = (5, vec![chunk(1, 5)]));
    assert_eq!(with(longer, |private| private.size = 5), Err(GrantError::RootMismatch));
}

#[test]
fn recipient_whose_key_makes_no_secret_gets_nothing() {
    let id = bob().id();
    let to = Party { id: &id, x25519: &[0; 32] };
    let made = make(&ann(), to, &ticket(), &private(), &manifest_signed().bytes, &[]);
    assert_eq!(made, Err(GrantError::WeakKey));
}

// ---- The tree ----

#[test]
fn each_chunk_of_a_file_with_lists_is_proved_and_no_other_is() {
    let name = |at: usize| ChunkName(crate::keys::sha256(&at.to_le_bytes()));
    let chunk = |at: usize| Entry::Chunk { name: name(at), key: Secret([0; 32]), encoding: 0, len: 200 };
    let full: Vec<Entry> = (0..ENTRIES_PER_LIST).map(chunk).collect();
    let mixed = vec![Entry::Hole { len: 9 }, chunk(9000), Entry::Hole { len: 1 }, chunk(9001)];
    let list = |at: usize, entries: &[Entry]| Entry::List {
        name: name(at),
        key: Secret([0; 32]),
        entries: entries.len() as u32,
        len: entries.iter().map(Entry::len).sum(),
    };
    let top = vec![chunk(8000), list(8001, &full), Entry::Hole { len: 5 }, list(8002, &mixed), chunk(8003)];
    let sums = [ListSum::of(&full, 300_000), ListSum::of(&mixed, 144)];
    let root = root(&top, &sums).unwrap();
    let data_len = (crate::seal::padded_len(200) + 16) as u32;
    let places = [
        (Place::Entry(0), 8000, data_len),
        (Place::Entry(1), 8001, 300_000),
        (Place::InList { list: 1, entries: &full, at: 0 }, 0, data_len),
        (Place::InList { list: 1, entries: &full, at: 4095 }, 4095, data_len),
        (Place::Entry(3), 8002, 144),
        (Place::InList { list: 3, entries: &mixed, at: 3 }, 9001, data_len),
        (Place::Entry(4), 8003, data_len),
    ];
    for (place, at, len) in places {
        let proof = prove(&top, &sums, place).unwrap();
        assert!(proof.len() <= PROOF_BYTES_MAX);
        assert!(is_member(&root, &proof, &name(at), len), "{at}");
        assert!(!is_member(&root, &proof, &name(at), len + 1), "the length is bound");
        assert!(!is_member(&root, &proof, &name(at + 1), len), "the name is bound");
        for byte in 0..proof.len() {
            let mut changed = proof.clone();
            changed[byte] ^= 1;
            assert!(!is_member(&root, &changed, &name(at), len), "{at}, byte {byte}");
            assert!(!is_member(&root, &proof[..byte], &name(at), len));
        }
    }
    assert!(prove(&top, &sums, Place::Entry(2)).is_none(), "a hole has no chunk");
    assert!(prove(&top, &sums, Place::Entry(5)).is_none());
    assert!(prove(&top, &sums, Place::InList { list: 0, entries: &full, at: 0 }).is_none());
    assert!(prove(&top, &sums, Place::InList { list: 3, entries: &mixed, at: 0 }).is_none());
    assert!(super::root(&top, &sums[..1]).is_err() && super::root(&top[..1], &sums).is_err());
}

#[test]
fn root_binds_number_and_order_of_chunks() {
    let root = |entries: &[Entry]| super::root(entries, &[]).unwrap();
    let (a, b) = (chunk(1, 5), chunk(2, 5));
    let roots = [
        root(&[]),
        root(std::slice::from_ref(&a)),
        root(&[a.clone(), b.clone()]),
        root(&[b.clone(), a.clone()]),
        root(&[a.clone(), b.clone(), b.clone()]),
        root(&[a.clone(), b.clone(), b.clone(), b.clone()]),
    ];
    let different: std::collections::HashSet<_> = roots.iter().collect();
    assert_eq!(different.len(), roots.len());
}

#[test]
fn largest_proof_is_within_its_limit() {
    let list: Vec<Entry> = (0..ENTRIES_PER_LIST).map(|_| chunk(1, 5)).collect();
    let sum = ListSum::of(&list, 144);
    let entry = Entry::List { name: ChunkName([1; 32]), key: Secret([0; 32]), entries: 4096, len: 5 * 4096 };
    let (top, sums) = (vec![entry; 1024], vec![sum; 1024]);
    let proof = prove(&top, &sums, Place::InList { list: 1000, entries: &list, at: 4000 }).unwrap();
    assert_eq!(proof.len(), 1 + 32 + 2 * 9 + 22 * 32);
    let len = (crate::seal::padded_len(5) + 16) as u32;
    assert!(is_member(&root(&top, &sums).unwrap(), &proof, &ChunkName([1; 32]), len));
}

// ---- Revocations and what a holder decides ----

fn list(numbers: &[u64]) -> Revocations {
    list_by(&ann(), 7, numbers)
}

fn list_by(creator: &Identity, number: u64, numbers: &[u64]) -> Revocations {
    let mut revoked = Ranges::default();
    numbers.iter().for_each(|number| revoked.add(*number));
    let body = RevocationsBody { creator: creator.id(), number, revoked, extensions: vec![] };
    Revocations::sign(creator, body).unwrap()
}

#[test]
fn ranges_are_one_form_for_one_set() {
    let ranges = |numbers: &[u64]| {
        let mut ranges = Ranges::default();
        numbers.iter().for_each(|number| ranges.add(*number));
        ranges
    };
    let span = |first, last| Range { first, last };
    assert_eq!(ranges(&[3, 1, 2]).as_slice(), [span(1, 3)]);
    assert_eq!(ranges(&[5, 1, 9, 5]).as_slice(), [span(1, 1), span(5, 5), span(9, 9)]);
    let mut joined = ranges(&[5, 1, 9]);
    joined.add_range(span(2, 8));
    assert_eq!(joined.as_slice(), [span(1, 9)]);
    joined.add_all(&ranges(&[u64::MAX, 11]));
    assert_eq!(joined.as_slice(), [span(1, 9), span(11, 11), span(u64::MAX, u64::MAX)]);
    joined.add(10);
    assert_eq!(joined.as_slice(), [span(1, 11), span(u64::MAX, u64::MAX)]);
    for (number, expected) in [(1, true), (11, true), (12, false), (u64::MAX - 1, false), (u64::MAX, true)] {
        assert_eq!(joined.contains(number), expected, "{number}");
    }
}

#[test]
fn each_field_of_a_list_that_is_changed_is_refused() {
    let signed = list(&[5, 9]).as_bytes().to_vec();
    assert_eq!(Revocations::from_bytes(&signed), Ok(list(&[5, 9])));
    let (number, ranges) = (21 + 32, 21 + 32 + 8);
    let bad = GrantError::BadSignature;
    for (field, at, bit, expected) in [
        ("label", 3, 1, GrantError::Malformed("another format's label")),
        ("version", 20, 2, GrantError::UnknownVersion),
        ("number", number, 1, bad.clone()),
        ("count", ranges, 1, GrantError::Malformed("goes on after the end")),
        ("last of a range", ranges + 4 + 8, 2, bad.clone()),
        ("signature", signed.len() - 1, 2, bad.clone()),
    ] {
        let mut changed = signed.clone();
        changed[at] ^= bit;
        // One range less: its bytes are read as extensions.
        match Revocations::from_bytes(&changed) {
            Err(GrantError::Malformed(_)) if field == "count" => {}
            other => assert_eq!(other, Err(expected), "{field}"),
        }
    }
    let ordered = GrantError::Malformed("ranges ascend, with gaps");
    for (about, at, value, expected) in [
        ("number 0", number, 0u64, GrantError::Malformed("a list's number is 1 or more")),
        ("a range from 0", ranges + 4, 0, ordered.clone()),
        ("a range that ends before it begins", ranges + 4, 6, ordered.clone()),
        ("ranges that touch", ranges + 4 + 8, 8, ordered.clone()),
        ("ranges that lie in each other", ranges + 4 + 8, 20, ordered),
    ] {
        let changed = resigned(&signed, &ann(), put(at, &value.to_le_bytes()));
        assert_eq!(Revocations::from_bytes(&changed), Err(expected), "{about}");
    }
    let other = resigned(&signed, &eve(), |_| {});
    assert_eq!(Revocations::from_bytes(&other), Err(bad));
    for at in 0..signed.len() {
        let mut changed = signed.clone();
        changed[at] ^= 0x40;
        assert!(Revocations::from_bytes(&changed).is_err(), "byte {at}");
        assert!(Revocations::from_bytes(&signed[..at]).is_err());
    }
}

#[test]
fn largest_list_fits_and_one_range_more_does_not() {
    let mut revoked = Ranges::default();
    (1..=RANGES_MAX as u64).for_each(|n| revoked.add(2 * n));
    let body = RevocationsBody { creator: ann().id(), number: 1, revoked, extensions: vec![] };
    let signed = Revocations::sign(&ann(), body.clone()).unwrap();
    assert!(signed.as_bytes().len() <= LIST_BYTES_MAX);
    assert_eq!(Revocations::from_bytes(signed.as_bytes()).as_deref(), Ok(&body));
    let mut more = body;
    more.revoked.add(1 << 40);
    assert_eq!(Revocations::sign(&ann(), more), Err(GrantError::TooLong("list of revocations")));
}

#[test]
fn holder_serves_the_recipient_in_time_and_has_a_reason_for_each_refusal() {
    let (ticket, bob, eve) = (ticket(), bob().id(), eve().id());
    let for_good = Ticket::sign(&ann(), TicketBody { expires: 0, ..body() }).unwrap();
    let (other, revoking) = (list(&[1 << 32 | 6]), list(&[1 << 32 | 5]));
    let foreign = list_by(&self::eve(), 9, &[1 << 32 | 5]);
    let plain = Presented { ticket: &ticket, caller: &bob, list: None, seen: 0, now: NOW };
    let old = |number, seen| Err(GrantError::OlderList { number, seen });
    for (about, presented, expected) in [
        ("no list yet", plain, Ok(())),
        ("a list of others", Presented { list: Some(&other), seen: 7, ..plain }, Ok(())),
        ("the last second", Presented { now: NOW + 10, ..plain }, Ok(())),
        ("for good", Presented { ticket: &for_good, now: u64::MAX, ..plain }, Ok(())),
        ("another caller", Presented { caller: &eve, ..plain }, Err(GrantError::WrongRecipient)),
        ("expired", Presented { now: NOW + 11, ..plain }, Err(GrantError::Expired)),
        ("revoked", Presented { list: Some(&revoking), seen: 7, ..plain }, Err(GrantError::Revoked)),
        ("an older list", Presented { list: Some(&other), seen: 8, ..plain }, old(7, 8)),
        ("a lost list", Presented { seen: 8, ..plain }, old(0, 8)),
        ("a foreign list", Presented { list: Some(&foreign), ..plain }, Err(GrantError::ForeignList)),
    ] {
        assert_eq!(allows(presented), expected, "{about}");
    }
}

#[test]
fn holder_serves_no_chunk_that_the_ticket_does_not_cover() {
    let (ticket, bob) = (ticket(), bob().id());
    let presented = Presented { ticket: &ticket, caller: &bob, list: None, seen: 0, now: NOW };
    let proof = prove(&entries(), &[], Place::Entry(2)).unwrap();
    let (name, len) = (ChunkName([2; 32]), 128 + 16);
    assert_eq!(allows_chunk(presented, &name, len, &proof), Ok(()));
    let refused = Err(GrantError::RootMismatch);
    assert_eq!(allows_chunk(presented, &ChunkName([3; 32]), len, &proof), refused);
    assert_eq!(allows_chunk(presented, &name, len - 1, &proof), refused);
    assert_eq!(allows_chunk(presented, &name, len, &[]), refused);
    assert_eq!(allows_chunk(presented, &name, len, &vec![0; PROOF_BYTES_MAX + 1]), refused);
    let expired = Presented { now: NOW + 11, ..presented };
    assert_eq!(allows_chunk(expired, &name, len, &proof), Err(GrantError::Expired));
}

// ---- Records ----

#[test]
fn records_read_back_and_their_later_versions_are_told() {
    for share in [None, Some([4; 16])] {
        let made = GrantMade {
            ticket: ticket(),
            file: FileId([5; 16]),
            version: 2,
            manifest: manifest_signed().hash,
            share,
        };
        assert_eq!(GrantMade::from_bytes(&made.to_bytes()), Ok(made.clone()));
        assert_eq!(made.key()[..], [&[4][..], &[7; 16]].concat());
        assert!(GrantMade::from_bytes(&[&made.to_bytes()[..], &[0]].concat()).is_err());
    }
    let received = GrantReceived { received: NOW, is_kept: true, grant: vec![1, 2, 3] };
    assert_eq!(GrantReceived::from_bytes(&received.to_bytes()), Ok(received.clone()));
    assert_eq!(GrantReceived::key(&ticket())[..], [&[5][..], &ann().id().0, &[7; 16]].concat());
    let list = list(&[5]);
    assert_eq!(revocations_from_bytes(&revocations_to_bytes(&list)), Ok(list.clone()));
    assert_eq!(revocations_key(&ann().id())[..], [&[6][..], &ann().id().0].concat());
    let later = |mut bytes: Vec<u8>| {
        bytes[0] = 2;
        bytes
    };
    let unknown = GrantError::UnknownVersion;
    assert_eq!(GrantReceived::from_bytes(&later(received.to_bytes())), Err(unknown.clone()));
    assert_eq!(revocations_from_bytes(&later(revocations_to_bytes(&list))), Err(unknown.clone()));
    assert_eq!(GrantMade::from_bytes(&[2]), Err(unknown));
}

#[test]
fn bytes_from_strangers_do_no_harm() {
    for len in 0..300 {
        let mut noise = crate::keys::random::<300>()[..len].to_vec();
        let labelled = [Writer::with_label("grove grant v1").as_slice(), &noise].concat();
        assert!(opened_by(&labelled, &bob(), &ann()).is_err());
        noise.splice(0..0, Writer::with_label("grove ticket v1").finish());
        assert!(Ticket::from_bytes(&noise).is_err() && Revocations::from_bytes(&noise).is_err());
        assert!(!is_member(&[0; 32], &noise, &ChunkName([0; 32]), 1));
    }
}
