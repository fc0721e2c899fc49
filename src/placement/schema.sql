-- placement.db: what is where. Rebuilt from catalog, owners.log and a scan of chunks/ when it is lost.

CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

-- Every record of the catalog that counts. seq grows for ever; what lies over meta.published is not yet published.
CREATE TABLE catalog (
    seq  INTEGER PRIMARY KEY,
    key  BLOB NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- empty: the key is forgotten
);
-- Records of a foreign head while it is merged.
CREATE TABLE foreign_records (key BLOB PRIMARY KEY, seq INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
-- Segments of the newest head, oldest first; a run is what one publication or merge made.
CREATE TABLE segments (ord INTEGER PRIMARY KEY, run INTEGER NOT NULL, name BLOB NOT NULL, len INTEGER NOT NULL);
-- Heads of mine that I wrote or have merged.
CREATE TABLE heads (hash BLOB PRIMARY KEY, life INTEGER NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;

-- The tree as it should be: files, symlinks and folders that are not deleted. Id 1 is GroveHome.
CREATE TABLE nodes (
    id      INTEGER PRIMARY KEY,
    parent  INTEGER NOT NULL,
    name    BLOB NOT NULL,
    kind    INTEGER NOT NULL,            -- as in a manifest
    file    BLOB NOT NULL,
    seq     INTEGER NOT NULL,            -- its newest version's record in catalog
    version INTEGER NOT NULL,
    state   INTEGER NOT NULL,            -- 0 present, 1 remote-only, 2 awaiting
    size    INTEGER NOT NULL,
    mtime_s INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    mode    INTEGER NOT NULL,
    ctime   INTEGER NOT NULL,            -- ns; 0: look again
    ino     INTEGER NOT NULL, btime INTEGER NOT NULL,
    dev     INTEGER NOT NULL,            -- devices.id it was last seen on
    first_at INTEGER NOT NULL,           -- observed seconds of the first and of the newest version
    last_at INTEGER NOT NULL,
    touched_at INTEGER NOT NULL DEFAULT 0 -- observed seconds at which the brake last counted it
);
INSERT INTO nodes VALUES (1, 0, CAST('GroveHome' AS BLOB), 2, zeroblob(16), 0, 0, 2, 0, 0, 0, 448, 0, 0, 0, 0, 0, 0, 0);
CREATE UNIQUE INDEX nodes_name ON nodes (parent, name);
CREATE INDEX nodes_ino ON nodes (ino);
CREATE INDEX nodes_file ON nodes (file);
CREATE INDEX nodes_waiting ON nodes (state) WHERE state = 2;
CREATE TABLE devices (id INTEGER PRIMARY KEY, fsid BLOB NOT NULL UNIQUE);

-- Observed seconds at which a version was first found superseded.
CREATE TABLE superseded (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL);

-- Deleted files that can still be restored: the Recycle Bin.
CREATE TABLE bin (file BLOB PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL, parent BLOB NOT NULL, name BLOB NOT NULL) WITHOUT ROWID;

-- Other cells, by small numbers.
CREATE TABLE cells (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);

-- Every chunk I hold or know of. place 0 absent, 1 loose, 2 in a pack. own 0 not mine, 1 of a file of mine, 2 a list of
-- one, 3 a segment of my catalog. ncopies: rows of copies with state 0 or 3. want: copies that its files want by the numbers of
-- their folders; null: as many as the cell's setting says; 0: no version names it yet.
CREATE TABLE chunks (
    id    INTEGER PRIMARY KEY,
    name  BLOB NOT NULL UNIQUE,
    len   INTEGER NOT NULL,              -- sealed bytes
    place INTEGER NOT NULL,
    pack  INTEGER, off INTEGER,
    own   INTEGER NOT NULL,
    ncopies INTEGER NOT NULL DEFAULT 0,
    extra INTEGER NOT NULL DEFAULT 0,    -- 1: a copy more on peers is wanted, for its file is to be freed here; 2: it is freed
    want  INTEGER
);
-- Queries name it: SQLite would take chunks_short, which leads through all that have as few copies.
CREATE INDEX chunks_extra ON chunks (id) WHERE extra > 0;
CREATE INDEX chunks_short ON chunks (want, ncopies) WHERE own IN (1, 2);
CREATE INDEX chunks_pack ON chunks (pack) WHERE pack IS NOT NULL;
-- Copies of my chunks on peers. state 0 stored, 1 to release, 2 stored with a peer that is away, 3 suspect: asked for a
-- proof in vain. proven: observed day of the last proof, counted from 1; 0: never.
CREATE TABLE copies (
    chunk INTEGER NOT NULL, cell INTEGER NOT NULL, state INTEGER NOT NULL, proven INTEGER NOT NULL,
    PRIMARY KEY (chunk, cell)
) WITHOUT ROWID;
CREATE INDEX copies_release ON copies (cell, chunk) WHERE state = 1;
CREATE INDEX copies_unproven ON copies (cell, chunk) WHERE proven = 0;
CREATE INDEX copies_suspect ON copies (cell, chunk) WHERE state = 3;
-- Copies of which a proof was asked for in vain: how often, since when, and when to ask again (observed seconds).
CREATE TABLE IF NOT EXISTS unanswered (
    cell INTEGER NOT NULL, chunk INTEGER NOT NULL, tries INTEGER NOT NULL, since INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (cell, chunk)
) WITHOUT ROWID;
-- Roots of chunks of mine that lay here once: proofs of their leaves lead to them (format.md, section 13).
CREATE TABLE IF NOT EXISTS roots (chunk INTEGER PRIMARY KEY, root BLOB NOT NULL);
-- Chunks I hold for peers. seq: my inventory's number for that owner. class 0 chunk, 1 catalog segment. state 0 held, 1 trash, 2 gone.
CREATE TABLE holds (
    chunk INTEGER NOT NULL, owner INTEGER NOT NULL, seq INTEGER NOT NULL, class INTEGER NOT NULL,
    state INTEGER NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (chunk, owner)
) WITHOUT ROWID;
CREATE INDEX holds_seq ON holds (owner, seq);
CREATE INDEX holds_trash ON holds (chunk) WHERE state = 1;
-- Catalog heads of peers.
CREATE TABLE peer_heads (
    hash BLOB PRIMARY KEY, owner INTEGER NOT NULL, life INTEGER NOT NULL, seq INTEGER NOT NULL,
    tip INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX peer_heads_owner ON peer_heads (owner);
