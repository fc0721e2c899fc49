//! `.grove-home`: the mark that this folder is this cell's GroveHome and its disk is there.

use std::io::{self, Read};
use std::path::Path;

use super::ignore::MARKER_NAME;
use super::unix::Folder;
use crate::id::hex;
use crate::placement::DbError;
use crate::vault::{Vault, VaultError};

const META: &str = "home";

/// Makes GroveHome and its mark, where there is none yet, and remembers the mark. `adopt` takes over a mark of another
/// cell or life: for a recovery, whose new state folder knows no mark.
pub fn create(vault: &Vault, adopt: bool) -> Result<(), VaultError> {
    let home = &vault.home;
    let doing = || format!("cannot make GroveHome {}", home.display());
    std::fs::create_dir_all(home).map_err(VaultError::io(doing()))?;
    let known = vault.db.read(|t| t.meta(META))?;
    let root = Folder::open_root(home).map_err(VaultError::io(doing()))?;
    let found = read(&root);
    let mark = match (known, found) {
        (Some(known), Some(found)) if known == found => return Ok(()),
        (None, Some(found)) if adopt => found,
        (Some(_), Some(_)) | (None, Some(_)) => {
            return Err(VaultError::Refused(format!(
                "{} belongs to another cell's state folder; give another folder with --home, or remove {} there",
                home.display(),
                String::from_utf8_lossy(MARKER_NAME)
            )));
        }
        // A new mark would make an empty mount point this cell's GroveHome, and all that is missing in it deleted.
        (Some(_), None) => return Err(VaultError::Refused(no_mark(home))),
        (None, None) => {
            let mark = format!("GroveHome of cell {}\n{}\n", vault.id(), hex(&crate::keys::random::<16>()));
            write(home, &mark).map_err(VaultError::io(doing()))?;
            mark.into_bytes()
        }
    };
    Ok(vault.db.change_durably(|t| t.set_meta(META, &mark))?)
}

/// Fails if the folder at GroveHome's path is not the GroveHome that is known.
pub fn check(vault: &Vault, root: &Folder) -> Result<(), VaultError> {
    match (vault.db.read(|t| t.meta(META))?, read(root)) {
        (Some(known), Some(found)) if known == found => Ok(()),
        (_, None) => Err(VaultError::Home(no_mark(&vault.home))),
        _ => Err(VaultError::Home(format!(
            "{} is another GroveHome than before; nothing is taken as deleted. Mount the right disk; or if this folder is \
             right, run `grove doctor --adopt-home`",
            vault.home.display()
        ))),
    }
}

/// Takes the folder that is there now as GroveHome. What is missing in it is awaited, not deleted.
pub fn adopt(vault: &Vault) -> Result<(), VaultError> {
    vault.db.change_durably(|t| -> Result<(), DbError> {
        t.set_meta(META, b"")?;
        t.await_all()
    })?;
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    let mark = match read(&root) {
        Some(mark) => mark,
        None => {
            let mark = format!("GroveHome of cell {}\n{}\n", vault.id(), hex(&crate::keys::random::<16>()));
            write(&vault.home, &mark).map_err(VaultError::io("cannot mark GroveHome"))?;
            mark.into_bytes()
        }
    };
    Ok(vault.db.change_durably(|t| t.set_meta(META, &mark))?)
}

/// Puts a mark, and removes what earlier tries left that were cut off.
fn write(home: &Path, mark: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(home)?.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b".grove-home.") && name.ends_with(b".tmp") {
            std::fs::remove_file(entry.path())?;
        }
    }
    crate::vault::write_whole(&home.join(".grove-home"), mark.as_bytes())
}

fn no_mark(home: &Path) -> String {
    format!(
        "{} has no {}: its disk is not mounted, or the mark was removed; nothing is taken as deleted. Mount the disk; or \
         if this folder is right, run `grove doctor --adopt-home`",
        home.display(),
        String::from_utf8_lossy(MARKER_NAME)
    )
}

fn read(root: &Folder) -> Option<Vec<u8>> {
    let mut mark = Vec::new();
    root.open_file(MARKER_NAME).ok()?.take(1024).read_to_end(&mut mark).ok()?;
    Some(mark)
}
