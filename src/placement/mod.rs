//! What is where: the tree of files, the chunks they are made of, and who holds copies. Knows nothing of sockets.
//!
//! Promise: a change is one transaction, whole or absent; ids that one call gives another accepts.

pub mod explain;
pub mod planner;
mod sqlite;
mod tables;
mod tree;

use std::fmt;
use std::path::PathBuf;

pub use sqlite::{Db, Watch, copy_in_memory};
pub use tables::{
    CellNumber, ChunkId, ChunkRow, Claim, Copy, CopyState, Extra, HeldTotals, HoldClass, HoldState,
    InventoryRow, KeyAndBody, Own, OwnTotals, StoredHead, Tables, Unanswered, Want,
};
pub use tree::{BinRow, Device, Node, NodeId, NodeState, NodeTotals, Sort};

/// Why the database did not do as asked.
#[derive(Debug)]
pub enum DbError {
    /// SQLite's own words, with what was being done.
    Sqlite { doing: &'static str, why: rusqlite::Error },
    /// The file is no database of this version of Grove.
    Foreign { path: PathBuf, version: i64 },
    /// A row does not have the form it was written in.
    Row(&'static str),
}

impl DbError {
    /// The disk is full; deleting something lets the same call succeed.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite { why, .. }
            if why.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    /// The database file itself is damaged.
    pub fn is_damaged(&self) -> bool {
        match self {
            Self::Sqlite { why, .. } => matches!(
                why.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
            ),
            Self::Row(_) => true,
            Self::Foreign { .. } => false,
        }
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { doing, why } if self.is_full() => {
                write!(f, "disk full while {doing} ({why}); free some space and try again")
            }
            Self::Sqlite { doing, why } => write!(f, "database error while {doing}: {why}"),
            Self::Foreign { path, version } => write!(
                f,
                "{} has format {version}, which this Grove does not know; update Grove, or move the file away and it is made again",
                path.display()
            ),
            Self::Row(what) => {
                write!(f, "placement.db holds a malformed {what}; move it away and it is made again")
            }
        }
    }
}

impl std::error::Error for DbError {}

impl From<rusqlite::Error> for DbError {
    fn from(why: rusqlite::Error) -> Self {
        Self::Sqlite { doing: "using placement.db", why }
    }
}
