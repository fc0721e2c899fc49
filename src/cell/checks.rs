//! `doctor`: what could be wrong with this cell and its machine, and what to do about it. And the recovery card.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Instant;

use super::Cell;
use super::json::{Obj, list};
use crate::pool;
use crate::recovery_card::RecoveryCard;
use crate::vault::{Vault, VaultError};

struct Check {
    name: String,
    state: &'static str,
    text: String,
    remedy: String,
}

fn check(
    name: &'static str,
    fits: bool,
    text: impl Into<String>,
    worse: &'static str,
    remedy: &str,
) -> Check {
    let state = if fits { "ok" } else { worse };
    Check {
        name: name.into(),
        state,
        text: text.into(),
        remedy: if fits { String::new() } else { remedy.into() },
    }
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Cell {
    pub(super) async fn doctor(&self) -> Result<String, VaultError> {
        let vault = Arc::clone(&self.vault);
        let (watched, watches_full) = self.keeper.watched();
        let mut checks = pool::unblock(move || machine_checks(&vault, watched, watches_full)).await?;
        for raised in self.vault.alerts() {
            // What was looked at just now says it already.
            if checks.iter().any(|check| check.name == raised.code && check.state != "ok") {
                continue;
            }
            let alert = raised.alert;
            checks.push(Check { name: raised.code, state: "warn", text: alert.text, remedy: alert.remedy });
        }
        let any_fail = checks.iter().any(|check| check.state == "fail");
        Ok(Obj::new()
            .bool("sound", !any_fail)
            .raw(
                "checks",
                list(checks.iter().map(|c| {
                    Obj::new()
                        .str("name", &c.name)
                        .str("state", c.state)
                        .str("text", &c.text)
                        .str("remedy", &c.remedy)
                        .end()
                })),
            )
            .end())
    }

    /// The recovery card: the phrase, and where the peers are who have the rest.
    pub(super) async fn phrase(&self) -> Result<String, VaultError> {
        let addresses = self.peer_addresses().await?;
        let card = RecoveryCard {
            name: self.name.clone(),
            id: self.vault.id().to_string(),
            phrase: self.vault.master.phrase(),
            peers: addresses.clone(),
            relays: Vec::new(),
        };
        let vault = Arc::clone(&self.vault);
        let kept = pool::unblock(move || vault.db.read(|t| t.meta_u64("phrase_kept"))).await?.is_some();
        Ok(Obj::new()
            .str("phrase", &card.phrase)
            .raw("words", list(card.phrase.split_whitespace().map(super::json::text)))
            .str("card", &card.to_text())
            .str("qr_text", &card.to_qr_text())
            .raw(
                "addresses",
                list(addresses.iter().flat_map(|(_, some)| some).map(|address| super::json::text(address))),
            )
            .bool("kept", kept)
            .end())
    }
}

fn machine_checks(vault: &Vault, watched: usize, watches_full: bool) -> Result<Vec<Check>, VaultError> {
    let integrity = vault.db.integrity()?;
    let mut checks = vec![
        check(
            "database",
            integrity == "ok",
            format!("placement.db: {integrity}"),
            "fail",
            "stop the cell, move placement.db away, and start it: it is made again",
        ),
        match vault.store.free() {
            Ok(space) => check(
                "disk",
                space.free > space.reserve,
                format!("{} MiB free, {} MiB in reserve", space.free >> 20, space.reserve >> 20),
                "fail",
                "free some space; new files are not kept until then",
            ),
            // The words say what to do.
            Err(why) => check("disk", false, why.to_string(), "fail", ""),
        },
    ];
    let root = crate::files::unix::Folder::open_root(&vault.home);
    let home = match &root {
        Ok(root) => crate::files::marker::check(vault, root).map_err(|why| why.to_string()),
        Err(why) => Err(format!("GroveHome {}: {why}", vault.home.display())),
    };
    checks.push(match home {
        Ok(()) => check("home", true, format!("GroveHome is {}", vault.home.display()), "fail", ""),
        Err(why) => check(
            "home",
            false,
            why,
            "fail",
            "mount its disk, or run `grove doctor --adopt-home` if this folder is right",
        ),
    });
    let open = ["", ".key", "node.key", "node_x25519.key", "peer_secret"].into_iter().find(|name| {
        fs::metadata(vault.dir.join(name)).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
    });
    checks.push(check(
        "secrets",
        open.is_none(),
        match open {
            Some(name) => format!("{} can be read by others", vault.dir.join(name).display()),
            None => "keys are readable by this user alone".into(),
        },
        "fail",
        &format!("chmod -R go= {}", vault.dir.display()),
    ));
    // A service may not be allowed to see it.
    let limit = read_number("/proc/sys/fs/inotify/max_user_watches")
        .map_or(String::new(), |limit| format!("; the kernel allows {limit}"));
    let folders = if watched == 1 { "folder" } else { "folders" };
    checks.push(check(
        "watch",
        !watches_full,
        format!("{watched} {folders} watched{limit}"),
        "warn",
        "raise it: echo fs.inotify.max_user_watches=524288 | sudo tee /etc/sysctl.d/50-grove.conf && sudo sysctl --system; \
         until then changes are found by scans",
    ));
    let wall = vault.clock.wall();
    checks.push(check(
        "clock",
        (1_760_000_000..4_000_000_000).contains(&wall),
        if vault.clock.is_synchronized() { "kept by NTP" } else { "not kept by NTP" },
        "warn",
        "set the clock; nothing expires by a wrong one",
    ));
    let kept = vault.db.read(|t| t.meta_u64("phrase_kept"))?.is_some();
    checks.push(check(
        "phrase",
        kept,
        if kept { "kept" } else { "not known to be kept" },
        "warn",
        "run `grove phrase`, write the card down, and confirm it",
    ));
    checks.push(check("ciphers", true, ciphers(), "ok", ""));
    Ok(checks)
}

/// By what chunks are sealed and named on this processor, and how fast: one core, one try, so that it takes milliseconds.
fn ciphers() -> String {
    /// Enough for a figure, little enough for the slowest board.
    const BYTES: usize = 1 << 20;
    let key = crate::keys::Secret(crate::keys::random());
    let mut bytes = vec![0; BYTES];
    let mb_per_s = |began: Instant| BYTES as f64 / began.elapsed().as_secs_f64().max(1e-9) / 1e6;
    // The first touch of the memory is no work of the cipher.
    bytes.fill(1);
    let began = Instant::now();
    let sealed = crate::seal::seal_part(&key, "grove doctor", &bytes);
    let cipher = mb_per_s(began);
    let began = Instant::now();
    crate::keys::sha256(&sealed);
    let hash = mb_per_s(began);
    let by = if crate::sha256::has_instructions() { "the processor's instructions" } else { "software" };
    format!(
        "ChaCha20-Poly1305 by {} ({cipher:.0} MB/s), SHA-256 by {by} ({hash:.0} MB/s)",
        crate::seal::cipher_words()
    )
}
