//! Who may use the dashboard: the cell's own secret, a password, sessions, and the code of the first visit.
//!
//! Promise: a wrong secret, password or code costs whoever tries more than it costs the cell.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use argon2::{Algorithm, Argon2, Params, Version};
use miniserde::{Deserialize, Serialize, json};
use subtle::ConstantTimeEq;

use crate::dashboard::totp;
use crate::id::{hex, unhex};
use crate::keys::{random, sha256};
use crate::order;
use crate::vault::write_whole;

/// Memory of one hash: the least that OWASP asks for, 0.2 s on a Pi 4.
const HASH_KIB: u32 = 19 * 1024;
/// Passes over that memory.
const HASH_PASSES: u32 = 2;
/// Lanes.
const HASH_LANES: u32 = 1;
/// Bytes of a hash.
const HASH_BYTES: usize = 32;
/// Most memory that a stored hash may ask for.
const HASH_KIB_MAX: u32 = 256 * 1024;
/// Most passes that a stored hash may ask for.
const HASH_PASSES_MAX: u32 = 64;
/// Hashes that may wait while one is made.
const HASHES_WAITING_MAX: usize = 4;
/// Fewest characters of a password.
const PASSWORD_CHARS_MIN: usize = 8;
/// Most bytes of a password.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Shortest secret of the cell, in characters.
const SECRET_CHARS_MIN: usize = 32;
/// Largest file that is read as a stored hash.
const AUTH_FILE_BYTES_MAX: u64 = 1024;
/// Sessions at once; the one unused for longest gives way.
const SESSIONS_MAX: usize = 64;
/// A session ends when it is not used for so long.
pub(crate) const SESSION_IDLE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A session ends this long after it began.
const SESSION_LIFE: Duration = Duration::from_secs(180 * 24 * 3600);
/// Longest file of sessions, and longest text of a browser about itself, in bytes.
const SESSIONS_FILE_BYTES_MAX: u64 = 256 * 1024;
const AGENT_BYTES_MAX: usize = 200;
/// A secret of a second factor that was shown must be confirmed within so long.
const TOTP_CONFIRM: Duration = Duration::from_secs(15 * 60);
/// Wrong set-up codes after which the code is void until the next start.
const SETUP_MISSES_MAX: u32 = 5;
/// Tries before an address has to wait.
const FREE_TRIES: u32 = 3;
/// First wait of an address; doubles with each further miss.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// Longest wait of an address.
const DELAY_MAX: Duration = Duration::from_secs(15 * 60);
/// An address that tried nothing for so long starts afresh.
const DELAY_FORGET: Duration = Duration::from_secs(3600);
/// Addresses remembered; the oldest gives way.
const ADDRESSES_MAX: usize = 1024;

/// Letters of a set-up code: none that is easily taken for another (Crockford's base 32).
const CODE_LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// How a sender proved that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It has the cell's own secret.
    Secret,
    /// It has a session.
    Session,
}

/// Why somebody was not let in.
#[derive(Debug)]
pub enum Denied {
    /// Not the password.
    WrongPassword,
    /// The password is right, and a code of the second factor is wanted, too.
    TotpNeeded,
    /// Not a code of the second factor, or one that was used.
    WrongTotp,
    /// There is no second factor to confirm or to remove.
    NoTotp,
    /// Not the code; so many tries are left.
    WrongCode(u32),
    /// Too many wrong codes; there will be a new one at the next start.
    CodeVoid,
    /// There is a password already.
    AlreadySetUp,
    /// There is no password yet.
    NotSetUp,
    /// Too short, too long: says which.
    UnfitPassword(&'static str),
    /// This address has to wait.
    Wait(Duration),
    /// Too many others are trying.
    Busy,
    /// The hash could not be written.
    Disk(io::Error),
}

impl Denied {
    /// The HTTP status that says so.
    pub fn status(&self) -> u16 {
        match self {
            Self::WrongPassword
            | Self::TotpNeeded
            | Self::WrongTotp
            | Self::WrongCode(_)
            | Self::CodeVoid => 403,
            Self::AlreadySetUp | Self::NotSetUp | Self::NoTotp => 409,
            Self::UnfitPassword(_) => 400,
            Self::Wait(_) | Self::Busy => 429,
            Self::Disk(_) => 500,
        }
    }

    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong_password",
            Self::TotpNeeded => "totp_needed",
            Self::WrongTotp => "wrong_totp",
            Self::NoTotp => "no_totp",
            Self::WrongCode(_) => "wrong_code",
            Self::CodeVoid => "code_void",
            Self::AlreadySetUp => "already_set_up",
            Self::NotSetUp => "not_set_up",
            Self::UnfitPassword(_) => "unfit_password",
            Self::Wait(_) => "wait",
            Self::Busy => "busy",
            Self::Disk(_) => "disk",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::WrongPassword => "`grove password` on the cell sets a new one.",
            Self::TotpNeeded => {
                "Open the app that shows its codes. `grove password --no-totp` on the cell switches it off."
            }
            Self::WrongTotp => {
                "Wait for the next code; each is good once. If none is right, compare the clocks of phone and cell."
            }
            Self::NoTotp => "Begin with a new secret.",
            Self::WrongCode(_) => "The code is printed when the cell starts.",
            Self::CodeVoid => "Start the cell again; it prints a new code.",
            Self::AlreadySetUp => "Sign in; `grove password` on the cell sets a new password.",
            Self::NotSetUp => "Set one with the code that is printed when the cell starts.",
            Self::UnfitPassword(_) => "Four or five words of your own make a good one.",
            Self::Wait(_) | Self::Busy => "Try again in a moment.",
            Self::Disk(_) => "Check the disk that holds Grove's state folder.",
        }
    }

    /// Seconds after which to try again, if that is the cure.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Wait(wait) => Some(wait.as_secs() + 1),
            Self::Busy => Some(2),
            _ => None,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongPassword => f.write_str("This is not the password."),
            Self::TotpNeeded => f.write_str("A code of the second factor is wanted, too."),
            Self::WrongTotp => f.write_str("This is not a code of the second factor that is good now."),
            Self::NoTotp => f.write_str("There is no second factor to confirm or to remove."),
            Self::WrongCode(left) => write!(f, "This is not the set-up code. Tries left: {left}."),
            Self::CodeVoid => f.write_str("The set-up code is void after too many wrong tries."),
            Self::AlreadySetUp => f.write_str("This cell has a password already."),
            Self::NotSetUp => f.write_str("This cell has no password yet."),
            Self::UnfitPassword(why) => f.write_str(why),
            Self::Wait(wait) => {
                write!(f, "Too many wrong tries from this address. Wait {} s.", wait.as_secs() + 1)
            }
            Self::Busy => f.write_str("Too many are signing in at once."),
            Self::Disk(error) => write!(f, "The password could not be stored: {error}."),
        }
    }
}

impl std::error::Error for Denied {}

/// Who asks at the entrance.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// Whence.
    pub from: IpAddr,
    /// What the browser says it is.
    pub agent: String,
    /// It came over TLS.
    pub is_tls: bool,
}

/// A session, for its owner to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// A public name of it: 16 hexadecimal digits.
    pub id: String,
    /// Unix seconds of its beginning and of its last use.
    pub created_unix: i64,
    /// See `created_unix`.
    pub used_unix: i64,
    /// Whence it was opened.
    pub from: String,
    /// What the browser said it is.
    pub agent: String,
    /// It is the one that asks.
    pub is_current: bool,
}

/// The guard of the dashboard. Shared between threads.
pub struct Auth {
    /// Hash of the cell's secret: comparing hashes hides the length too.
    secret: [u8; 32],
    path: PathBuf,
    cookie: String,
    state: Mutex<State>,
    /// Held while a hash is made: each takes 19 MiB.
    hashing: Mutex<()>,
    hashes: AtomicUsize,
}

struct State {
    hash: Option<String>,
    setup: Setup,
    sessions: Sessions,
    delays: Delays,
    totp: Option<Totp>,
    /// A secret that was shown, not confirmed yet.
    shown: Option<([u8; totp::SECRET_BYTES], Instant)>,
}

/// A second factor.
struct Totp {
    secret: [u8; totp::SECRET_BYTES],
    /// The step of the last code that was used.
    used: u64,
}

struct Setup {
    code: String,
    misses: u32,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(…)")
    }
}

impl Auth {
    /// Reads the stored hash at `path`; none is fine, a damaged one is an error. `secret` is the cell's own, at
    /// least 32 characters; `cookie` names the session cookie, one per cell as browsers mix the ports of a host.
    pub fn open(path: &Path, secret: &str, cookie: &str) -> io::Result<Self> {
        if secret.trim().len() < SECRET_CHARS_MIN {
            let why = "the cell's secret is too short; remove the file `peer_secret` to get a new one";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let state = State {
            hash: read_hash(path)?,
            setup: Setup { code: new_code(), misses: 0 },
            sessions: Sessions::read(&path.with_file_name(SESSIONS_FILE), Instant::now()),
            delays: Delays::default(),
            totp: read_totp(&path.with_file_name(TOTP_FILE))?,
            shown: None,
        };
        Ok(Self {
            secret: sha256(secret.trim().as_bytes()),
            path: path.to_owned(),
            cookie: cookie.to_owned(),
            state: Mutex::new(state),
            hashing: Mutex::new(()),
            hashes: AtomicUsize::new(0),
        })
    }

    /// A password was set.
    pub fn is_set_up(&self) -> bool {
        self.state().hash.is_some()
    }

    /// The code for the first visit, to be printed at start; `None` once there is a password, or after 5 misses.
    pub fn setup_code(&self) -> Option<String> {
        let state = self.state();
        let valid = state.hash.is_none() && state.setup.misses < SETUP_MISSES_MAX;
        valid.then(|| format!("{}-{}", &state.setup.code[..4], &state.setup.code[4..]))
    }

    /// What the `Authorization` and `Cookie` headers prove.
    pub fn check(&self, authorization: Option<&str>, cookie: Option<&str>, now: Instant) -> Option<Proof> {
        if let Some(secret) = authorization.and_then(bearer) {
            let same: bool = sha256(secret.as_bytes()).ct_eq(&self.secret).into();
            return same.then_some(Proof::Secret);
        }
        let token = self.token(cookie?)?;
        self.state().sessions.is_live(token, now).then_some(Proof::Session)
    }

    /// Opens a session with the password, and a code where there is a second factor; gives its `Set-Cookie`.
    pub fn sign_in(
        &self,
        password: &str,
        code: Option<&str>,
        who: &Visitor,
        now: Instant,
    ) -> Result<String, Denied> {
        self.prove_password(password, who.from, now)?;
        self.prove_totp(code, who.from, now)?;
        Ok(self.open_session(who, now))
    }

    /// Sets the first password with the code; gives the `Set-Cookie` of a session.
    pub fn set_up(&self, code: &str, password: &str, who: &Visitor, now: Instant) -> Result<String, Denied> {
        is_fit(password)?;
        {
            let mut state = self.state();
            if state.hash.is_some() {
                return Err(Denied::AlreadySetUp);
            }
            if state.setup.misses >= SETUP_MISSES_MAX {
                return Err(Denied::CodeVoid);
            }
            let same: bool = plain_code(code).as_bytes().ct_eq(state.setup.code.as_bytes()).into();
            if !same {
                state.setup.misses += 1;
                log::warn!("wrong set-up code from {}", who.from);
                return Err(match SETUP_MISSES_MAX - state.setup.misses {
                    0 => Denied::CodeVoid,
                    left => Denied::WrongCode(left),
                });
            }
        }
        self.hash_in_turn(|| {
            // Somebody else with the code may have been faster.
            if self.is_set_up() { Err(Denied::AlreadySetUp) } else { self.store(password) }
        })??;
        Ok(self.open_session(who, now))
    }

    /// Sets a new password and ends all sessions. A session must name the `current` password.
    pub fn change_password(
        &self,
        proof: Proof,
        current: Option<&str>,
        password: &str,
        from: IpAddr,
        now: Instant,
    ) -> Result<(), Denied> {
        is_fit(password)?;
        if proof == Proof::Session {
            self.prove_password(current.unwrap_or_default(), from, now)?;
        }
        self.hash_in_turn(|| self.store(password))??;
        self.state().sessions.close_all();
        self.save(now);
        Ok(())
    }

    /// Ends the session of this `Cookie` header; gives the `Set-Cookie` that forgets it.
    pub fn sign_out(&self, cookie: Option<&str>, is_tls: bool, now: Instant) -> String {
        if let Some(token) = cookie.and_then(|cookie| self.token(cookie)) {
            self.state().sessions.close(token);
            self.save(now);
        }
        let (name, secure) = self.cookie_of(is_tls);
        format!("{name}=; Path=/; HttpOnly; SameSite=Strict{secure}; Max-Age=0")
    }

    /// All sessions, the last used first. `cookie` is the header of who asks.
    pub fn sessions(&self, cookie: Option<&str>, now: Instant) -> Vec<SessionView> {
        let token = cookie.and_then(|cookie| self.token(cookie)).map(|token| sha256(token.as_bytes()));
        let mut state = self.state();
        state.sessions.expire(now);
        let unix = unix_now();
        let mut all: Vec<&OpenSession> = state.sessions.0.iter().collect();
        order::sort_by_key(&mut all, |session| std::cmp::Reverse(session.used));
        let view = |session: &OpenSession| SessionView {
            id: hex(&session.id),
            created_unix: unix - now.saturating_duration_since(session.began).as_secs() as i64,
            used_unix: unix - now.saturating_duration_since(session.used).as_secs() as i64,
            from: session.from.clone(),
            agent: session.agent.clone(),
            is_current: token.is_some_and(|token| session.token.ct_eq(&token).into()),
        };
        all.into_iter().map(view).collect()
    }

    /// Ends the session of this public name; `None`: all but the one of this `Cookie` header. Gives how many ended.
    pub fn revoke(&self, id: Option<&str>, cookie: Option<&str>, now: Instant) -> usize {
        let token = cookie.and_then(|cookie| self.token(cookie)).map(|token| sha256(token.as_bytes()));
        let mut state = self.state();
        let before = state.sessions.0.len();
        state.sessions.0.retain(|session| match id {
            Some(id) => hex(&session.id) != id,
            None => token.is_some_and(|token| session.token.ct_eq(&token).into()),
        });
        let ended = before - state.sessions.0.len();
        drop(state);
        self.save(now);
        ended
    }

    /// Whether a code of a second factor is wanted.
    pub fn has_totp(&self) -> bool {
        self.state().totp.is_some()
    }

    /// A new secret for a second factor, to be confirmed by one of its codes.
    pub fn begin_totp(&self, now: Instant) -> [u8; totp::SECRET_BYTES] {
        let secret = random();
        self.state().shown = Some((secret, now));
        secret
    }

    /// From now on codes of the secret that was shown are wanted.
    pub fn confirm_totp(&self, code: &str, from: IpAddr, now: Instant) -> Result<(), Denied> {
        let (secret, used) = {
            let mut state = self.state();
            let fresh = state.shown.filter(|(_, at)| now.saturating_duration_since(*at) < TOTP_CONFIRM);
            let Some((secret, _)) = fresh else { return Err(Denied::NoTotp) };
            state.delays.begin(from, now).map_err(Denied::Wait)?;
            let used = totp::check(&secret, code, unix_now() as u64, 0).ok_or(Denied::WrongTotp)?;
            state.delays.succeeded(from);
            state.shown = None;
            (secret, used)
        };
        write_totp(&self.path.with_file_name(TOTP_FILE), &secret, used).map_err(Denied::Disk)?;
        self.state().totp = Some(Totp { secret, used });
        Ok(())
    }

    /// No code is wanted any more. A session must name the password.
    pub fn remove_totp(
        &self,
        proof: Proof,
        password: Option<&str>,
        from: IpAddr,
        now: Instant,
    ) -> Result<(), Denied> {
        if !self.has_totp() {
            return Err(Denied::NoTotp);
        }
        if proof == Proof::Session {
            self.prove_password(password.unwrap_or_default(), from, now)?;
        }
        forget(&self.path.with_file_name(TOTP_FILE)).map_err(Denied::Disk)?;
        self.state().totp = None;
        Ok(())
    }

    fn prove_totp(&self, code: Option<&str>, from: IpAddr, now: Instant) -> Result<(), Denied> {
        let (secret, used) = {
            let mut state = self.state();
            let State { totp: Some(factor), delays, .. } = &mut *state else { return Ok(()) };
            let code = code.filter(|code| !code.trim().is_empty()).ok_or(Denied::TotpNeeded)?;
            // Who gets here knows the password. Tries from all addresses count together: there are only a million codes.
            delays.begin(EVERYBODY, now).map_err(Denied::Wait)?;
            let Some(used) = totp::check(&factor.secret, code, unix_now() as u64, factor.used) else {
                log::warn!("wrong code of the second factor from {from}");
                return Err(Denied::WrongTotp);
            };
            factor.used = used;
            delays.succeeded(EVERYBODY);
            (factor.secret, used)
        };
        // A code that could not be noted as used could be used again. The lock is let go before: the door needs it.
        write_totp(&self.path.with_file_name(TOTP_FILE), &secret, used).map_err(Denied::Disk)
    }

    /// Notes sessions on the disk, where they have changed. Not for the executor.
    pub fn save(&self, now: Instant) {
        let text = {
            let mut state = self.state();
            state.sessions.expire(now);
            state.sessions.1 = false;
            state.sessions.to_text(now)
        };
        if let Err(why) = write_whole(&self.path.with_file_name(SESSIONS_FILE), text.as_bytes()) {
            log::warn!("sessions will not survive a restart: {why}");
        }
    }

    /// Whether `save` has something to do.
    pub fn needs_saving(&self) -> bool {
        self.state().sessions.1
    }

    fn prove_password(&self, password: &str, from: IpAddr, now: Instant) -> Result<(), Denied> {
        let hash = {
            let mut state = self.state();
            let hash = state.hash.clone().ok_or(Denied::NotSetUp)?;
            state.delays.begin(from, now).map_err(Denied::Wait)?;
            hash
        };
        let right = password.len() <= PASSWORD_BYTES_MAX
            && self.hash_in_turn(|| check_password(&hash, password)).inspect_err(|_| {
                // Nothing was tried.
                self.state().delays.take_back(from);
            })?;
        if !right {
            log::warn!("wrong password from {from}");
            return Err(Denied::WrongPassword);
        }
        self.state().delays.succeeded(from);
        Ok(())
    }

    /// Runs `work` once no other hash is being made; refuses if too many wait already.
    fn hash_in_turn<T>(&self, work: impl FnOnce() -> T) -> Result<T, Denied> {
        if self.hashes.fetch_add(1, Ordering::SeqCst) > HASHES_WAITING_MAX {
            self.hashes.fetch_sub(1, Ordering::SeqCst);
            return Err(Denied::Busy);
        }
        let turn = self.hashing.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work();
        drop(turn);
        self.hashes.fetch_sub(1, Ordering::SeqCst);
        Ok(result)
    }

    fn store(&self, password: &str) -> Result<(), Denied> {
        let hash = hash_password(password);
        write_hash(&self.path, &hash).map_err(Denied::Disk)?;
        self.state().hash = Some(hash);
        Ok(())
    }

    fn open_session(&self, who: &Visitor, now: Instant) -> String {
        let token = hex(&random::<32>());
        self.state().sessions.open(&token, who, now);
        self.save(now);
        let idle = SESSION_IDLE.as_secs();
        let (name, secure) = self.cookie_of(who.is_tls);
        format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}; Max-Age={idle}")
    }

    /// A name of its own over TLS: a browser lets no plain page put another in the place of a secure cookie.
    fn cookie_of(&self, is_tls: bool) -> (String, &'static str) {
        if is_tls { (format!("{}_tls", self.cookie), "; Secure") } else { (self.cookie.clone(), "") }
    }

    fn token<'a>(&self, cookies: &'a str) -> Option<&'a str> {
        let pairs = || cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
        let over_tls = pairs().find(|(name, _)| name.strip_suffix("_tls") == Some(&self.cookie));
        over_tls.or_else(|| pairs().find(|(name, _)| *name == self.cookie)).map(|(_, token)| token)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of `Bearer TOKEN`.
pub(crate) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, secret) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// Sets the password of a cell that does not run; `path` is its `dashboard_auth`. Takes a while, like every hash.
/// All sessions end; with `no_totp` the second factor does, too.
pub fn set_password(path: &Path, password: &str, no_totp: bool) -> Result<(), Denied> {
    is_fit(password)?;
    write_hash(path, &hash_password(password)).map_err(Denied::Disk)?;
    forget(&path.with_file_name(SESSIONS_FILE)).map_err(Denied::Disk)?;
    if no_totp {
        forget(&path.with_file_name(TOTP_FILE)).map_err(Denied::Disk)?;
    }
    Ok(())
}

/// Beside the file of the password.
const SESSIONS_FILE: &str = "dashboard_sessions";
const TOTP_FILE: &str = "dashboard_totp";
/// Stands for all addresses together.
const EVERYBODY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64)
}

fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

fn read_small(path: &Path, max: u64) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() <= max => Ok(Some(String::from_utf8_lossy(&fs::read(path)?).into_owned())),
        Ok(_) => Ok(Some(String::new())),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why),
    }
}

/// The secret in hexadecimal, and the step of the last code that was used.
fn read_totp(path: &Path) -> io::Result<Option<Totp>> {
    let Some(text) = read_small(path, AUTH_FILE_BYTES_MAX)? else { return Ok(None) };
    let mut words = text.split_whitespace();
    let secret = words.next().and_then(unhex).and_then(|bytes| bytes.try_into().ok());
    let used = words.next().and_then(|word| word.parse().ok());
    match (secret, used) {
        (Some(secret), Some(used)) => Ok(Some(Totp { secret, used })),
        // Without it the password alone would be enough, which its owner does not expect.
        _ => {
            let why = format!(
                "{} is damaged; `grove password --no-totp` switches the second factor off",
                path.display()
            );
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

fn write_totp(path: &Path, secret: &[u8], used: u64) -> io::Result<()> {
    write_whole(path, format!("{} {used}\n", hex(secret)).as_bytes())
}

fn is_fit(password: &str) -> Result<(), Denied> {
    if password.chars().count() < PASSWORD_CHARS_MIN {
        return Err(Denied::UnfitPassword("The password needs at least 8 characters."));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Denied::UnfitPassword("The password is longer than 1,024 bytes."));
    }
    Ok(())
}

fn new_code() -> String {
    random::<8>().iter().map(|byte| char::from(CODE_LETTERS[usize::from(byte & 31)])).collect()
}

/// A code as typed by a person: any case and spacing, and letters that look like digits.
fn plain_code(typed: &str) -> String {
    let letters = typed.chars().filter(char::is_ascii_alphanumeric).take(16);
    let letters = letters.map(|letter| match letter.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        letter => letter,
    });
    letters.collect()
}

/// The Argon2id hash of `password` with a random salt, and beside it what it was made with:
/// `argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`, salt and hash in hexadecimal. Takes 19 MiB and a while: not for the executor.
pub fn hash_password(password: &str) -> String {
    let salt = random::<16>();
    let hash = argon2(HASH_KIB, HASH_PASSES, HASH_LANES, password, &salt, HASH_BYTES)
        .expect("the parameters are within Argon2's limits");
    format!("argon2id$v=19$m={HASH_KIB},t={HASH_PASSES},p={HASH_LANES}${}${}", hex(&salt), hex(&hash))
}

/// `password` is the one that `hash` was made of; a damaged hash fits none. Not for the executor.
pub fn check_password(hash: &str, password: &str) -> bool {
    let Some(stored) = StoredHash::read(hash) else { return false };
    match argon2(stored.kib, stored.passes, stored.lanes, password, &stored.salt, stored.hash.len()) {
        Some(made) => made.ct_eq(&stored.hash).into(),
        None => false,
    }
}

fn argon2(kib: u32, passes: u32, lanes: u32, password: &str, salt: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let params = Params::new(kib, passes, lanes, Some(bytes)).ok()?;
    let mut hash = vec![0; bytes];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password.as_bytes(), salt, &mut hash).ok()?;
    Some(hash)
}

struct StoredHash {
    kib: u32,
    passes: u32,
    lanes: u32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl StoredHash {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('$');
        if parts.next()? != "argon2id" || parts.next()? != "v=19" {
            return None;
        }
        let mut numbers = parts.next()?.split(',');
        let mut number = |name: &str| numbers.next()?.strip_prefix(name)?.parse::<u32>().ok();
        let (kib, passes, lanes) = (number("m=")?, number("t=")?, number("p=")?);
        let (salt, hash) = (unhex(parts.next()?)?, unhex(parts.next()?)?);
        let sound = parts.next().is_none()
            && numbers.next().is_none()
            && kib <= HASH_KIB_MAX
            && (1..=HASH_PASSES_MAX).contains(&passes)
            && (1..=4).contains(&lanes)
            && (8..=64).contains(&salt.len())
            && (16..=64).contains(&hash.len())
            && Params::new(kib, passes, lanes, Some(hash.len())).is_ok();
        sound.then_some(Self { kib, passes, lanes, salt, hash })
    }
}

fn read_hash(path: &Path) -> io::Result<Option<String>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = if length <= AUTH_FILE_BYTES_MAX { fs::read(path)? } else { Vec::new() };
    match String::from_utf8(text).ok().filter(|text| StoredHash::read(text).is_some()) {
        Some(text) => Ok(Some(text.trim().to_owned())),
        None => {
            let path = path.display();
            let why = format!("{path} is damaged; remove it to set a new dashboard password");
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

/// Puts the hash at `path` whole or not at all.
fn write_hash(path: &Path, hash: &str) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".tmp");
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    file.write_all(hash.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Open sessions, and whether they changed since they were written. Only hashes of tokens are kept.
#[derive(Debug, Default)]
struct Sessions(Vec<OpenSession>, bool);

#[derive(Debug)]
struct OpenSession {
    id: [u8; 8],
    token: [u8; 32],
    began: Instant,
    used: Instant,
    from: String,
    agent: String,
}

/// A session in the file.
#[derive(Serialize, Deserialize)]
struct KeptSession {
    id: String,
    token: String,
    created_unix: i64,
    used_unix: i64,
    from: String,
    agent: String,
}

/// A use within so long of the one before is not noted on the disk.
const NOTED_EVERY: Duration = Duration::from_secs(600);

impl Sessions {
    /// What earlier runs noted; what cannot be read is forgotten.
    fn read(path: &Path, now: Instant) -> Self {
        let text = match read_small(path, SESSIONS_FILE_BYTES_MAX) {
            Ok(Some(text)) => text,
            Ok(None) => return Self::default(),
            Err(why) => {
                log::warn!("sessions of the dashboard cannot be read: {why}");
                return Self::default();
            }
        };
        let kept: Vec<KeptSession> = json::from_str(&text).unwrap_or_else(|_| {
            log::warn!("{} is damaged; sign in again", path.display());
            Vec::new()
        });
        let unix = unix_now();
        // A clock that went back makes nothing older.
        let ago = |then: i64| {
            let since = Duration::from_secs(unix.saturating_sub(then).clamp(0, 10 * 365 * 86_400) as u64);
            now.checked_sub(since).unwrap_or(now)
        };
        let open = |kept: KeptSession| {
            Some(OpenSession {
                id: unhex(&kept.id)?.try_into().ok()?,
                token: unhex(&kept.token)?.try_into().ok()?,
                began: ago(kept.created_unix),
                used: ago(kept.used_unix),
                from: kept.from,
                agent: kept.agent,
            })
        };
        let mut sessions = Self(kept.into_iter().filter_map(open).take(SESSIONS_MAX).collect(), false);
        sessions.expire(now);
        sessions
    }

    fn to_text(&self, now: Instant) -> String {
        let unix = unix_now();
        let before = |then: Instant| unix - now.saturating_duration_since(then).as_secs() as i64;
        let kept = self.0.iter().map(|session| KeptSession {
            id: hex(&session.id),
            token: hex(&session.token),
            created_unix: before(session.began),
            used_unix: before(session.used),
            from: session.from.clone(),
            agent: session.agent.clone(),
        });
        json::to_string(&kept.collect::<Vec<_>>())
    }

    fn open(&mut self, token: &str, who: &Visitor, now: Instant) {
        if self.0.len() >= SESSIONS_MAX {
            if let Some(oldest) = (0..self.0.len()).min_by_key(|at| self.0[*at].used) {
                self.0.swap_remove(oldest);
            }
        }
        let mut agent: String = who.agent.chars().filter(|c| !crate::logger::is_odd(*c)).collect();
        let mut end = agent.len().min(AGENT_BYTES_MAX);
        while !agent.is_char_boundary(end) {
            end -= 1;
        }
        agent.truncate(end);
        let token = sha256(token.as_bytes());
        let from = who.from.to_canonical().to_string();
        self.0.push(OpenSession { id: random(), token, began: now, used: now, from, agent });
    }

    fn expire(&mut self, now: Instant) {
        self.0.retain(|session| {
            now.saturating_duration_since(session.used) < SESSION_IDLE
                && now.saturating_duration_since(session.began) < SESSION_LIFE
        });
    }

    fn is_live(&mut self, token: &str, now: Instant) -> bool {
        self.expire(now);
        match self.find(token) {
            Some(at) => {
                self.1 |= now.saturating_duration_since(self.0[at].used) > NOTED_EVERY;
                self.0[at].used = now;
                true
            }
            None => false,
        }
    }

    fn close(&mut self, token: &str) {
        if let Some(at) = self.find(token) {
            self.0.swap_remove(at);
        }
    }

    fn close_all(&mut self) {
        self.0.clear();
    }

    fn find(&self, token: &str) -> Option<usize> {
        let token = sha256(token.as_bytes());
        self.0.iter().position(|session| session.token.ct_eq(&token).into())
    }
}

/// Makes each address wait longer with every wrong password. Decides only; time is passed in.
#[derive(Debug, Default)]
pub struct Delays(HashMap<IpAddr, Misses>);

#[derive(Debug)]
struct Misses {
    count: u32,
    last: Instant,
}

impl Delays {
    /// A try from this address begins; it counts as a miss until it succeeds, so that tries made at once do not
    /// all pass. `Err` is how long to wait.
    pub fn begin(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let from = network(from);
        self.0.retain(|_, misses| now.saturating_duration_since(misses.last) < DELAY_FORGET);
        if !self.0.contains_key(&from) && self.0.len() >= ADDRESSES_MAX {
            if let Some(oldest) = self.0.iter().min_by_key(|(_, misses)| misses.last).map(|(from, _)| *from) {
                self.0.remove(&oldest);
            }
        }
        let misses = self.0.entry(from).or_insert(Misses { count: 0, last: now });
        let passed = now.saturating_duration_since(misses.last);
        let wait = delay(misses.count);
        if passed < wait {
            return Err(wait - passed);
        }
        misses.count = misses.count.saturating_add(1);
        misses.last = now;
        Ok(())
    }

    /// The try that began turned out right.
    pub fn succeeded(&mut self, from: IpAddr) {
        self.0.remove(&network(from));
    }

    /// The try that began was not made after all.
    pub fn take_back(&mut self, from: IpAddr) {
        if let Some(misses) = self.0.get_mut(&network(from)) {
            misses.count = misses.count.saturating_sub(1);
        }
    }
}

fn delay(misses: u32) -> Duration {
    match misses.checked_sub(FREE_TRIES) {
        None => Duration::ZERO,
        Some(over) => DELAY_MIN.saturating_mul(1 << over.min(20)).min(DELAY_MAX),
    }
}

/// What one household or one machine has: an IPv4 address, or 64 bits of IPv6.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        whole => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("grove-auth-{}", hex(&random::<8>())));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn auth(&self) -> Auth {
            Auth::open(&self.0.join("dashboard_auth"), SECRET, "grove_1").unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn home() -> Visitor {
        Visitor { from: HOME, agent: "Browser/1\u{202e}".into(), is_tls: false }
    }

    fn cookie(set_cookie: &str) -> &str {
        set_cookie.split(';').next().unwrap()
    }

    #[test]
    fn password_fits_only_its_hash() {
        let hash = hash_password("correct horse");
        assert!(hash.starts_with("argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(check_password(&hash, "correct horse"));
        assert!(!check_password(&hash, "correct hors"));
        assert_ne!(hash, hash_password("correct horse"));
    }

    #[test]
    fn damaged_hash_fits_nothing() {
        let hash = hash_password("correct horse");
        let bads = [
            String::new(),
            "argon2id".to_owned(),
            hash.replace("m=19456", "m=4294967295"),
            hash.replace("m=19456", "m=1"),
            hash.replace("t=2", "t=0"),
            hash.replace("p=1", "p=9"),
            hash.replace("v=19", "v=16"),
            format!("{hash}$00"),
            hash[..hash.len() - 1].to_owned(),
            "argon2id$v=19$m=19456,t=2,p=1$é$é".to_owned(),
        ];
        for bad in bads {
            assert!(!check_password(&bad, "correct horse"), "{bad}");
        }
    }

    #[test]
    fn secret_and_session_are_told_from_strangers() {
        let folder = Folder::new();
        let auth = folder.auth();
        let now = Instant::now();
        assert_eq!(auth.check(Some(&format!("Bearer {SECRET}")), None, now), Some(Proof::Secret));
        for wrong in ["", "Bearer", "Bearer ", "Basic 0123", &format!("Bearer {SECRET}0"), SECRET] {
            assert_eq!(auth.check(Some(wrong), None, now), None, "{wrong}");
        }
        let code = auth.setup_code().unwrap();
        let session = auth.set_up(&code.to_lowercase(), "a long password", &home(), now).unwrap();
        assert!(session.contains("HttpOnly; SameSite=Strict"));
        let cookies = format!("other=1; {}", cookie(&session));
        assert_eq!(auth.check(None, Some(&cookies), now), Some(Proof::Session));
        assert_eq!(auth.check(Some("Bearer x"), Some(&cookies), now), None);
        assert_eq!(auth.check(None, Some(&cookies), now + SESSION_IDLE), None);
        let again = auth.sign_in("a long password", None, &home(), now).unwrap();
        assert!(auth.sign_out(Some(cookie(&again)), false, now).contains("Max-Age=0"));
        assert_eq!(auth.check(None, Some(cookie(&again)), now), None);
        assert_eq!(auth.setup_code(), None);
    }

    #[test]
    fn password_outlives_a_restart_and_is_readable_by_its_owner_only() {
        let folder = Folder::new();
        let now = Instant::now();
        let auth = folder.auth();
        auth.set_up(&auth.setup_code().unwrap(), "a long password", &home(), now).unwrap();
        let mode = fs::metadata(folder.0.join("dashboard_auth")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let auth = folder.auth();
        assert!(auth.sign_in("a long password", None, &home(), now).is_ok());
        assert!(matches!(auth.set_up("x", "a long password", &home(), now), Err(Denied::AlreadySetUp)));
    }

    #[test]
    fn damaged_file_is_named() {
        let folder = Folder::new();
        let path = folder.0.join("dashboard_auth");
        fs::write(&path, "nonsense").unwrap();
        let error = Auth::open(&path, SECRET, "c").unwrap_err();
        assert!(error.to_string().contains("dashboard_auth is damaged"));
        assert!(Auth::open(&folder.0.join("none"), "short", "c").is_err());
    }

    #[test]
    fn setup_code_is_void_after_five_misses() {
        let folder = Folder::new();
        let auth = folder.auth();
        let code = auth.setup_code().unwrap();
        let now = Instant::now();
        for left in (1..5).rev() {
            let denied = auth.set_up("0000-000", "a long password", &home(), now).unwrap_err();
            assert!(matches!(denied, Denied::WrongCode(n) if n == left), "{denied}");
        }
        assert!(matches!(auth.set_up("", "a long password", &home(), now), Err(Denied::CodeVoid)));
        assert!(matches!(auth.set_up(&code, "a long password", &home(), now), Err(Denied::CodeVoid)));
        assert_eq!(auth.setup_code(), None);
        assert_ne!(folder.auth().setup_code().unwrap(), code);
    }

    #[test]
    fn short_password_does_not_cost_a_try() {
        let folder = Folder::new();
        let auth = folder.auth();
        let denied = auth.set_up("wrong", "short", &home(), Instant::now()).unwrap_err();
        assert_eq!((denied.status(), denied.code()), (400, "unfit_password"));
        assert!(matches!(auth.sign_in("x", None, &home(), Instant::now()), Err(Denied::NotSetUp)));
    }

    #[test]
    fn session_needs_the_current_password_to_change_it() {
        let folder = Folder::new();
        let auth = folder.auth();
        let now = Instant::now();
        let session = auth.set_up(&auth.setup_code().unwrap(), "a long password", &home(), now).unwrap();
        let change = |proof, current| auth.change_password(proof, current, "another password", HOME, now);
        assert!(matches!(change(Proof::Session, None), Err(Denied::WrongPassword)));
        change(Proof::Session, Some("a long password")).unwrap();
        assert_eq!(auth.check(None, Some(cookie(&session)), now), None);
        change(Proof::Secret, None).unwrap();
        assert!(auth.sign_in("another password", None, &home(), now).is_ok());
    }

    #[test]
    fn waits_double_and_are_forgotten() {
        let mut delays = Delays::default();
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(delays.begin(HOME, start), Ok(()));
        }
        assert_eq!(delays.begin(HOME, start), Err(Duration::from_secs(1)));
        let mut now = start;
        for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            let wait = Duration::from_secs(wait);
            assert_eq!(delays.begin(HOME, now), Err(wait));
            now += wait;
            assert_eq!(delays.begin(HOME, now), Ok(()));
        }
        assert_eq!(delays.begin(HOME, now + DELAY_FORGET), Ok(()));
        assert_eq!(delays.begin(HOME, now + DELAY_FORGET), Ok(()));
        delays.succeeded(HOME);
        assert_eq!(delays.begin(HOME, now + DELAY_FORGET), Ok(()));
    }

    #[test]
    fn remembered_addresses_are_bounded_and_count_by_network() {
        let mut delays = Delays::default();
        let now = Instant::now();
        for n in 0..3000u32 {
            assert_eq!(delays.begin(IpAddr::V4(n.into()), now + Duration::from_millis(n.into())), Ok(()));
        }
        assert_eq!(delays.0.len(), ADDRESSES_MAX);
        for n in 0..4u16 {
            let from = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, n, 0, 0, n));
            assert_eq!(delays.begin(from, now).is_ok(), n < 3);
        }
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn sessions_are_bounded() {
        let mut sessions = Sessions::default();
        let now = Instant::now();
        for n in 0..100u64 {
            sessions.open(&n.to_string(), &home(), now + Duration::from_secs(n));
        }
        assert_eq!(sessions.0.len(), SESSIONS_MAX);
        assert!(!sessions.is_live("35", now) && sessions.is_live("36", now));
    }

    #[test]
    fn sessions_outlive_a_restart_and_are_revoked() {
        let folder = Folder::new();
        let now = Instant::now();
        let auth = folder.auth();
        let first = auth.set_up(&auth.setup_code().unwrap(), "a long password", &home(), now).unwrap();
        let tls = Visitor { is_tls: true, ..home() };
        let second = auth.sign_in("a long password", None, &tls, now).unwrap();
        assert!(second.contains("_tls=") && second.contains("; Secure;"), "{second}");
        let file = folder.0.join("dashboard_sessions");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        for token in [&first, &second] {
            let token = cookie(token).split_once('=').unwrap().1;
            assert!(!fs::read_to_string(&file).unwrap().contains(token), "only a hash is kept");
        }
        let auth = folder.auth();
        assert_eq!(auth.check(None, Some(cookie(&first)), now), Some(Proof::Session));
        let views = auth.sessions(Some(cookie(&second)), now);
        assert_eq!(views.iter().filter(|view| view.is_current).count(), 1);
        assert_eq!(
            (views.len(), views[0].agent.as_str(), views[0].from.as_str()),
            (2, "Browser/1", "127.0.0.1")
        );
        let other = views.iter().find(|view| !view.is_current).unwrap();
        assert_eq!(auth.revoke(Some(&other.id), Some(cookie(&second)), now), 1);
        assert_eq!(auth.revoke(Some("0000"), None, now), 0);
        assert_eq!(auth.check(None, Some(cookie(&first)), now), None);
        let third = auth.sign_in("a long password", None, &home(), now).unwrap();
        assert_eq!(auth.revoke(None, Some(cookie(&third)), now), 1);
        assert_eq!(auth.check(None, Some(cookie(&third)), now), Some(Proof::Session));
        assert_eq!(folder.auth().check(None, Some(cookie(&second)), now), None, "after a restart, too");
        // Damage costs a sign-in, and nothing more.
        fs::write(&file, "[{").unwrap();
        assert_eq!(folder.auth().check(None, Some(cookie(&third)), now), None);
        set_password(&folder.0.join("dashboard_auth"), "another password", false).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn second_factor_is_wanted_once_it_is_confirmed() {
        let folder = Folder::new();
        let now = Instant::now();
        let auth = folder.auth();
        auth.set_up(&auth.setup_code().unwrap(), "a long password", &home(), now).unwrap();
        assert!(matches!(auth.confirm_totp("000000", HOME, now), Err(Denied::NoTotp)));
        let secret = auth.begin_totp(now);
        assert!(!auth.has_totp() && auth.sign_in("a long password", None, &home(), now).is_ok());
        // Of one moment, however long what follows takes: one step before and one after are good as well.
        let begun = unix_now() as u64 / 30;
        let code = |step: u64| totp::code_at(&secret, begun + step);
        assert!(matches!(auth.confirm_totp("x", HOME, now), Err(Denied::WrongTotp)));
        auth.confirm_totp(&code(0), HOME, now).unwrap();
        assert_eq!(
            fs::metadata(folder.0.join("dashboard_totp")).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let sign_in = |auth: &Auth, code: Option<&str>| auth.sign_in("a long password", code, &home(), now);
        assert!(matches!(sign_in(&auth, None), Err(Denied::TotpNeeded)));
        assert!(matches!(sign_in(&auth, Some(&code(0))), Err(Denied::WrongTotp)), "used already");
        // One step ahead is good, and only once, after a restart too.
        let next = code(1);
        assert!(sign_in(&auth, Some(&next)).is_ok());
        let auth = folder.auth();
        assert!(auth.has_totp());
        assert!(matches!(sign_in(&auth, Some(&next)), Err(Denied::WrongTotp)));
        assert!(matches!(auth.sign_in("wrong", Some(&next), &home(), now), Err(Denied::WrongPassword)));
        // Tries of all addresses together have to wait.
        let mut waits = false;
        for n in 0..10u32 {
            let who = Visitor { from: IpAddr::V4(n.into()), ..home() };
            waits |= matches!(auth.sign_in("a long password", Some("1"), &who, now), Err(Denied::Wait(_)));
        }
        assert!(waits);
        let remove = |proof, password| auth.remove_totp(proof, password, IpAddr::V4(77.into()), now);
        assert!(matches!(remove(Proof::Session, None), Err(Denied::WrongPassword)));
        remove(Proof::Session, Some("a long password")).unwrap();
        assert!(!folder.auth().has_totp());
        fs::write(folder.0.join("dashboard_totp"), "damaged").unwrap();
        let error = Auth::open(&folder.0.join("dashboard_auth"), SECRET, "c").unwrap_err();
        assert!(error.to_string().contains("--no-totp"));
        set_password(&folder.0.join("dashboard_auth"), "another password", true).unwrap();
        assert!(!folder.auth().has_totp());
    }

    #[test]
    fn only_so_many_hashes_wait() {
        let folder = Folder::new();
        let auth = folder.auth();
        auth.set_up(&auth.setup_code().unwrap(), "a long password", &home(), Instant::now()).unwrap();
        let busy = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..20u32)
                .map(|n| {
                    let auth = &auth;
                    scope.spawn(move || {
                        let who = Visitor { from: IpAddr::V4(n.into()), ..home() };
                        auth.sign_in("wrong", None, &who, Instant::now())
                    })
                })
                .collect();
            let results = tries.into_iter().map(|try_| try_.join().unwrap());
            results.filter(|result| matches!(result, Err(Denied::Busy))).count()
        });
        assert!(busy >= 1, "{busy}");
    }
}
