//! The tree of files as it should be, and the Recycle Bin.

use rusqlite::{Row, params};

use super::{DbError, Tables};
use crate::id::FileId;
use crate::manifest::{FileTime, Kind};

/// A row of `nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub i64);

impl NodeId {
    /// GroveHome itself.
    pub const ROOT: Self = Self(1);
}

/// Whether a file's bytes are in GroveHome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// This cell saw it on this device: its absence there is a deletion.
    Present = 0,
    /// Freed here on purpose; its absence means nothing.
    RemoteOnly = 1,
    /// To be brought back; its absence means nothing.
    Awaiting = 2,
}

/// By what a folder is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Name.
    Name,
    /// Bytes.
    Size,
    /// When it was modified.
    Modified,
    /// Folder, file or link, and then the ending of the name.
    Kind,
}

/// A row of `devices`: a file system that was seen below GroveHome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device(pub i64);

/// A file, symlink or folder that is not deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its row; 0 before it has one.
    pub id: NodeId,
    /// The folder's row.
    pub parent: NodeId,
    /// Its name there.
    pub name: Vec<u8>,
    /// File, symlink or folder.
    pub kind: Kind,
    /// The same over all versions.
    pub file: FileId,
    /// Its newest version's number in the catalog.
    pub seq: u64,
    /// Its newest version.
    pub version: u64,
    /// Whether its bytes are here.
    pub state: NodeState,
    /// As last seen: bytes.
    pub size: u64,
    /// As last seen: modified.
    pub mtime: FileTime,
    /// As last seen: permission bits.
    pub mode: u32,
    /// As last seen: changed, ns; 0 means look again.
    pub ctime: i64,
    /// As last seen: inode.
    pub ino: u64,
    /// As last seen: born, ns; 0 where the file system does not tell.
    pub btime: i64,
    /// Where it was last seen.
    pub dev: Device,
    /// Observed seconds of its first version.
    pub first_at: u64,
    /// Observed seconds of its newest version.
    pub last_at: u64,
}

/// A deleted file that can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinRow {
    /// The file.
    pub file: FileId,
    /// Its tombstone's number in the catalog.
    pub seq: u64,
    /// Observed seconds of the deletion.
    pub at: u64,
    /// The folder it was in.
    pub parent: FileId,
    /// Its name there.
    pub name: Vec<u8>,
}

/// Sums over the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeTotals {
    /// Files and symlinks.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Folders.
    pub folders: u64,
    /// Files, symlinks and folders still to be brought back.
    pub awaiting: u64,
    /// Their bytes.
    pub awaiting_bytes: u64,
}

const COLUMNS: &str = "id, parent, name, kind, file, seq, version, state, size, mtime_s, mtime_ns, mode, ctime, ino, \
                       btime, dev, first_at, last_at";

fn node(row: &Row<'_>) -> rusqlite::Result<Node> {
    let state = match row.get::<_, i64>(7)? {
        0 => NodeState::Present,
        1 => NodeState::RemoteOnly,
        _ => NodeState::Awaiting,
    };
    Ok(Node {
        id: NodeId(row.get(0)?),
        parent: NodeId(row.get(1)?),
        name: row.get(2)?,
        kind: Kind::from_u8(row.get(3)?).unwrap_or(Kind::File),
        file: FileId(row.get(4)?),
        seq: row.get::<_, i64>(5)? as u64,
        version: row.get::<_, i64>(6)? as u64,
        state,
        size: row.get::<_, i64>(8)? as u64,
        mtime: FileTime { s: row.get(9)?, ns: row.get(10)? },
        mode: row.get(11)?,
        ctime: row.get(12)?,
        ino: row.get::<_, i64>(13)? as u64,
        btime: row.get(14)?,
        dev: Device(row.get(15)?),
        first_at: row.get::<_, i64>(16)? as u64,
        last_at: row.get::<_, i64>(17)? as u64,
    })
}

impl Tables<'_> {
    /// Puts a node with a new row; `node.id` is not looked at.
    pub fn add_node(&self, node: &Node) -> Result<NodeId, DbError> {
        self.run(
            "INSERT INTO nodes (parent, name, kind, file, seq, version, state, size, mtime_s, mtime_ns, mode, ctime,
                                ino, btime, dev, first_at, last_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            params![
                node.parent.0,
                node.name,
                node.kind as i64,
                node.file.0,
                node.seq as i64,
                node.version as i64,
                node.state as i64,
                node.size as i64,
                node.mtime.s,
                node.mtime.ns,
                node.mode,
                node.ctime,
                node.ino as i64,
                node.btime,
                node.dev.0,
                node.first_at as i64,
                node.last_at as i64,
            ],
        )?;
        Ok(NodeId(self.conn.last_insert_rowid()))
    }

    /// Writes a node's row anew.
    pub fn set_node(&self, node: &Node) -> Result<(), DbError> {
        self.run(
            "UPDATE nodes SET parent = ?2, name = ?3, kind = ?4, file = ?5, seq = ?6, version = ?7, state = ?8,
                 size = ?9, mtime_s = ?10, mtime_ns = ?11, mode = ?12, ctime = ?13, ino = ?14, btime = ?15, dev = ?16,
                 first_at = ?17, last_at = ?18 WHERE id = ?1",
            params![
                node.id.0,
                node.parent.0,
                node.name,
                node.kind as i64,
                node.file.0,
                node.seq as i64,
                node.version as i64,
                node.state as i64,
                node.size as i64,
                node.mtime.s,
                node.mtime.ns,
                node.mode,
                node.ctime,
                node.ino as i64,
                node.btime,
                node.dev.0,
                node.first_at as i64,
                node.last_at as i64,
            ],
        )
        .map(drop)
    }

    /// Takes a node out of the tree.
    pub fn delete_node(&self, id: NodeId) -> Result<(), DbError> {
        self.run("DELETE FROM nodes WHERE id = ?1", [id.0]).map(drop)
    }

    /// A node by row.
    pub fn node(&self, id: NodeId) -> Result<Option<Node>, DbError> {
        self.one(&format!("SELECT {COLUMNS} FROM nodes WHERE id = ?1"), [id.0], node)
    }

    /// What has a name in a folder.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Result<Option<Node>, DbError> {
        self.one(
            &format!("SELECT {COLUMNS} FROM nodes WHERE parent = ?1 AND name = ?2"),
            params![parent.0, name],
            node,
        )
    }

    /// A node by file id.
    pub fn node_of(&self, file: FileId) -> Result<Option<Node>, DbError> {
        self.one(&format!("SELECT {COLUMNS} FROM nodes WHERE file = ?1"), [file.0], node)
    }

    /// Up to `limit` nodes of a folder with names over `after`, by name.
    pub fn children(&self, parent: NodeId, after: &[u8], limit: usize) -> Result<Vec<Node>, DbError> {
        self.list(
            &format!("SELECT {COLUMNS} FROM nodes WHERE parent = ?1 AND name > ?2 ORDER BY name LIMIT ?3"),
            params![parent.0, after, limit as i64],
            node,
        )
    }

    /// Up to `limit` nodes of a folder after the first `offset`, folders before all else. Names are compared without
    /// case (of ASCII letters).
    pub fn children_sorted(
        &self,
        parent: NodeId,
        sort: Sort,
        is_down: bool,
        offset: u64,
        limit: usize,
    ) -> Result<Vec<Node>, DbError> {
        let way = if is_down { "DESC" } else { "ASC" };
        let by_name = format!("lower(CAST(name AS TEXT)) {way}, name {way}");
        // What follows the last dot, if anything stands before it.
        const ENDING: &str = "CASE WHEN instr(substr(CAST(name AS TEXT), 2), '.') > 0 THEN lower(replace(\
            CAST(name AS TEXT), rtrim(CAST(name AS TEXT), replace(CAST(name AS TEXT), '.', '')), '')) ELSE '' END";
        let by = match sort {
            Sort::Name => by_name,
            Sort::Size => format!("size {way}, {by_name}"),
            Sort::Modified => format!("mtime_s {way}, mtime_ns {way}, {by_name}"),
            Sort::Kind => format!("kind {way}, {ENDING} {way}, {by_name}"),
        };
        self.list(
            &format!(
                "SELECT {COLUMNS} FROM nodes WHERE parent = ?1 AND id <> 1
                 ORDER BY (kind = {}) DESC, {by} LIMIT ?2 OFFSET ?3",
                Kind::Folder as u8
            ),
            params![parent.0, limit as i64, offset.min(i64::MAX as u64) as i64],
            node,
        )
    }

    /// How many nodes a folder has.
    pub fn child_count(&self, parent: NodeId) -> Result<u64, DbError> {
        self.number("SELECT count(*) FROM nodes WHERE parent = ?1 AND id <> 1", [parent.0])
    }

    /// Rows and names of up to `limit` nodes over row `after`.
    pub fn names_after(&self, after: NodeId, limit: usize) -> Result<Vec<(NodeId, Vec<u8>)>, DbError> {
        self.list(
            "SELECT id, name FROM nodes WHERE id > ?1 ORDER BY id LIMIT ?2",
            params![after.0, limit as i64],
            |row| Ok((NodeId(row.get(0)?), row.get(1)?)),
        )
    }

    /// How many nodes of a folder are recorded as present, the root not among its own.
    pub fn count_present(&self, parent: NodeId) -> Result<u64, DbError> {
        self.number("SELECT count(*) FROM nodes WHERE parent = ?1 AND state = 0 AND id <> 1", [parent.0])
    }

    /// Whether anything that lies directly in a folder awaits its bytes.
    pub fn has_awaiting_child(&self, parent: NodeId) -> Result<bool, DbError> {
        // By the folder: while much is brought back, the other index holds all of the tree.
        let sql = "SELECT EXISTS (SELECT 1 FROM nodes INDEXED BY nodes_name
                                  WHERE parent = ?1 AND state = 2 AND id <> 1)";
        Ok(self.number(sql, [parent.0])? > 0)
    }

    /// Nodes last seen with this inode.
    pub fn nodes_with_ino(&self, ino: u64) -> Result<Vec<Node>, DbError> {
        self.list(&format!("SELECT {COLUMNS} FROM nodes WHERE ino = ?1 LIMIT 64"), [ino as i64], node)
    }

    /// Up to `limit` nodes over row `after` that await their bytes, by row.
    pub fn awaiting(&self, after: NodeId, limit: usize) -> Result<Vec<Node>, DbError> {
        self.list(
            &format!("SELECT {COLUMNS} FROM nodes WHERE state = 2 AND id > ?1 ORDER BY id LIMIT ?2"),
            params![after.0, limit as i64],
            node,
        )
    }

    /// Up to `limit` nodes over row `after`, by row.
    pub fn nodes_after(&self, after: NodeId, limit: usize) -> Result<Vec<Node>, DbError> {
        self.list(
            &format!("SELECT {COLUMNS} FROM nodes WHERE id > ?1 ORDER BY id LIMIT ?2"),
            params![after.0, limit as i64],
            node,
        )
    }

    /// Sums over the tree, without the root.
    pub fn node_totals(&self) -> Result<NodeTotals, DbError> {
        let sql = "SELECT count(*) FILTER (WHERE kind < 2), sum(size) FILTER (WHERE kind = 0),
                          count(*) FILTER (WHERE kind = 2), count(*) FILTER (WHERE state = 2),
                          sum(size) FILTER (WHERE kind = 0 AND state = 2)
                   FROM nodes WHERE id <> 1";
        let totals = self.one(sql, [], |row| {
            let number = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.unwrap_or(0) as u64);
            Ok(NodeTotals {
                files: number(0)?,
                bytes: number(1)?,
                folders: number(2)?,
                awaiting: number(3)?,
                awaiting_bytes: number(4)?,
            })
        })?;
        Ok(totals.unwrap_or_default())
    }

    /// Notes that the brake counted a file at `now`; `false` if it did so already within `window`.
    pub fn touch_node(&self, id: NodeId, now: u64, window: u64) -> Result<bool, DbError> {
        let changed = self.run(
            "UPDATE nodes SET touched_at = ?2 + 1 WHERE id = ?1 AND (touched_at = 0 OR touched_at + ?3 < ?2 + 1)",
            params![id.0, now as i64, window as i64],
        )?;
        Ok(changed > 0)
    }

    /// Number of files and links, and their bytes.
    pub fn tree_size(&self) -> Result<(u64, u64), DbError> {
        let sql = "SELECT count(*), coalesce(sum(size), 0) FROM nodes WHERE kind < 2";
        let size =
            self.one(sql, [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
        Ok(size.unwrap_or_default())
    }

    /// Nothing is known to be on this disk any more: what is missing is awaited.
    pub fn await_all(&self) -> Result<(), DbError> {
        self.run("UPDATE nodes SET state = 2, ctime = 0, ino = 0 WHERE state = 0 AND id <> 1", []).map(drop)
    }

    /// The names from GroveHome down to a node; empty for GroveHome itself. `None` where a folder is missing or they
    /// run in a circle.
    pub fn path(&self, id: NodeId) -> Result<Option<Vec<Vec<u8>>>, DbError> {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let step = self.one("SELECT parent, name FROM nodes WHERE id = ?1", [at.0], |row| {
                Ok((NodeId(row.get(0)?), row.get::<_, Vec<u8>>(1)?))
            })?;
            let Some((parent, name)) = step else { return Ok(None) };
            names.push(name);
            at = parent;
            if names.len() > 4096 {
                return Ok(None);
            }
        }
        names.reverse();
        Ok(Some(names))
    }

    /// The node at a path of names below GroveHome.
    pub fn node_at(&self, path: &[Vec<u8>]) -> Result<Option<Node>, DbError> {
        let mut at = self.node(NodeId::ROOT)?;
        for name in path {
            let Some(folder) = at else { return Ok(None) };
            at = self.child(folder.id, name)?;
        }
        Ok(at)
    }

    /// Whether `folder` lies in `inside` or is it.
    pub fn is_within(&self, folder: NodeId, inside: NodeId) -> Result<bool, DbError> {
        let mut at = folder;
        for _ in 0..4096 {
            if at == inside {
                return Ok(true);
            }
            if at == NodeId::ROOT {
                return Ok(false);
            }
            let parent =
                self.one("SELECT parent FROM nodes WHERE id = ?1", [at.0], |row| row.get(0).map(NodeId))?;
            let Some(parent) = parent else { return Ok(false) };
            at = parent;
        }
        Ok(true)
    }

    /// The device with this file system id, new or known.
    pub fn device(&self, fsid: &[u8]) -> Result<Device, DbError> {
        self.run("INSERT OR IGNORE INTO devices (fsid) VALUES (?1)", [fsid])?;
        let device =
            self.one("SELECT id FROM devices WHERE fsid = ?1", [fsid], |row| row.get(0).map(Device))?;
        device.ok_or(DbError::Row("device"))
    }

    /// Has the next scan read a file that lies in GroveHome.
    pub fn look_again(&self, id: NodeId) -> Result<(), DbError> {
        self.run("UPDATE nodes SET ctime = 0 WHERE id = ?1 AND state = 0", [id.0]).map(drop)
    }

    // The Recycle Bin.

    /// Puts a deleted file into the bin.
    pub fn put_bin(&self, row: &BinRow) -> Result<(), DbError> {
        self.run(
            "INSERT OR REPLACE INTO bin VALUES (?1, ?2, ?3, ?4, ?5)",
            params![row.file.0, row.seq as i64, row.at as i64, row.parent.0, row.name],
        )
        .map(drop)
    }

    /// Takes a file out of the bin, to restore or forget it.
    pub fn take_bin(&self, file: FileId) -> Result<(), DbError> {
        self.run("DELETE FROM bin WHERE file = ?1", [file.0]).map(drop)
    }

    /// Up to `limit` deleted files with ids over `after`, by id.
    pub fn bin_after(&self, after: FileId, limit: usize) -> Result<Vec<BinRow>, DbError> {
        self.list(
            "SELECT file, seq, at, parent, name FROM bin WHERE file > ?1 ORDER BY file LIMIT ?2",
            params![after.0, limit as i64],
            bin_row,
        )
    }

    /// Up to `limit` deleted files behind the first `offset`, the newest first.
    pub fn bin_newest(&self, offset: usize, limit: usize) -> Result<Vec<BinRow>, DbError> {
        self.list(
            "SELECT file, seq, at, parent, name FROM bin ORDER BY at DESC, seq DESC LIMIT ?1 OFFSET ?2",
            params![limit as i64, offset as i64],
            bin_row,
        )
    }

    /// A deleted file.
    pub fn bin(&self, file: FileId) -> Result<Option<BinRow>, DbError> {
        self.one("SELECT file, seq, at, parent, name FROM bin WHERE file = ?1", [file.0], bin_row)
    }

    /// Deleted files with a name in a folder, newest first.
    pub fn bin_named(&self, parent: FileId, name: &[u8]) -> Result<Vec<BinRow>, DbError> {
        self.list(
            "SELECT file, seq, at, parent, name FROM bin WHERE parent = ?1 AND name = ?2 ORDER BY at DESC, seq DESC",
            params![parent.0, name],
            bin_row,
        )
    }

    /// Up to `limit` of what was deleted at this observed second or later, in any order.
    pub fn bin_since(&self, at: u64, limit: usize) -> Result<Vec<BinRow>, DbError> {
        self.list(
            "SELECT file, seq, at, parent, name FROM bin WHERE at >= ?1 LIMIT ?2",
            params![at as i64, limit as i64],
            bin_row,
        )
    }

    /// Number of deleted files.
    pub fn bin_count(&self) -> Result<u64, DbError> {
        self.number("SELECT count(*) FROM bin", [])
    }
}

fn bin_row(row: &Row<'_>) -> rusqlite::Result<BinRow> {
    Ok(BinRow {
        file: FileId(row.get(0)?),
        seq: row.get::<_, i64>(1)? as u64,
        at: row.get::<_, i64>(2)? as u64,
        parent: FileId(row.get(3)?),
        name: row.get(4)?,
    })
}
