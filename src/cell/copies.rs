//! How many copies the files of a folder want: `/api/v1/copies`. What follows from it is counted and planned elsewhere
//! (`crate::copies`, rounds).

use std::rc::Rc;
use std::sync::Arc;

use super::Cell;
use super::api::{json, needs};
use super::files::node_at;
use super::json::{Fields, Obj, list};
use super::placement::{folder_json, folders};
use crate::config::COPIES_MAX;
use crate::copies::{self, Numbers};
use crate::dashboard::api::ApiResponse;
use crate::files::unix::{from_wire, to_wire};
use crate::manifest::Kind;
use crate::placement::{DbError, Node, Tables};
use crate::pool;
use crate::vault::VaultError;

/// What files at a node want: how many, whether by the node's own number, and by which folder's.
pub(super) fn wanted_json(
    t: &Tables<'_>,
    numbers: &Numbers,
    node: &Node,
    usual: u64,
) -> Result<String, DbError> {
    let from = if node.kind == Kind::Folder { node.id } else { node.parent };
    let said = numbers.said_by(t, from)?;
    let by = match said {
        Some((folder, _)) => t.path(folder)?,
        None => None,
    };
    Ok(Obj::new()
        .num("copies", copies::in_all(said.map(|(_, copies)| copies), usual))
        .bool("own", said.is_some_and(|(folder, _)| folder == node.id))
        .raw("by", by.map_or("null".into(), |path| super::json::text(&to_wire(&path.join(&b'/')))))
        .num("usual", usual)
        .end())
}

impl Cell {
    /// The number of cells that copies can be on: this one and its peers.
    async fn cells(&self) -> Result<u64, VaultError> {
        Ok(1 + self.fleet().await?.peers.len() as u64)
    }

    pub(super) async fn copies(&self) -> Result<String, VaultError> {
        let cells = self.cells().await?;
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || {
            let numbers = vault.db.read(Numbers::load)?;
            let folders = folders(&vault, &numbers)?;
            Ok(Obj::new()
                .num("copies", vault.config.copies)
                .num("cells", cells)
                .raw("folders", list(folders.iter().map(folder_json)))
                .bool("counted", copies::is_counted(&vault)?)
                .end())
        })
        .await
    }

    pub(super) async fn set_copies(self: &Rc<Self>, fields: &Fields) -> ApiResponse {
        let Some(path) = fields.str("path") else { return needs("path") };
        let copies = match fields.num("copies") {
            None => return needs("copies"),
            Some(0) => None,
            Some(copies @ 1..=COPIES_MAX) => Some(copies as u8),
            Some(_) => {
                let why = format!("\"copies\" is from 1 to {COPIES_MAX}, or 0 for as many as elsewhere");
                return ApiResponse::error(400, "bad_request", &why, "");
            }
        };
        let place = from_wire(path);
        // A folder that has just been made is not in the tree yet, and a pass may move it.
        let held = self.keeper.hold().await;
        let vault = Arc::clone(&self.vault);
        let set = pool::unblock(move || {
            let node = vault.db.read(|t| node_at(t, &place))?;
            copies::set(&vault, &node, copies)?;
            crate::publish::publish(&vault)?;
            Ok(vault.db.read(|t| wanted_json(t, &Numbers::load(t)?, &node, vault.config.copies))?)
        })
        .await;
        drop(held);
        self.after_change();
        let outcome = match (set, self.cells().await) {
            (Ok(wanted), Ok(cells)) => {
                Ok(Obj::new().str("path", path).raw("wanted", wanted).num("cells", cells).end())
            }
            (Err(why), _) | (_, Err(why)) => Err(why),
        };
        json(outcome)
    }
}
