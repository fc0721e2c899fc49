//! Puts everything below `www/` into the program, packed for browsers where that is shorter, and leaves out of released
//! programs what they never read.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Types by the ending of a name; what is not here is not served.
const TYPES: &[(&str, &str)] = &[
    ("css", "text/css; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("md", "text/plain; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("webmanifest", "application/manifest+json"),
    ("webp", "image/webp"),
    ("woff2", "font/woff2"),
];
/// Types that are packed already.
const PACKED: &[&str] = &["png", "webp", "woff2"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("www");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    // The profiles that inherit from release, and with it `panic = "abort"`.
    if env("PROFILE").is_some_and(|profile| profile == "release") {
        // What may bring another linker; `mold -run` works by the first.
        println!("cargo:rerun-if-env-changed=LD_PRELOAD");
        println!("cargo:rerun-if-env-changed=RUSTFLAGS");
        leave_out_unwind_tables(&out);
        // Functions that came out as the same machine code stand once: 0.03 MB less.
        link_with(&out, &["-Wl,--icf=all".to_owned()]);
    }
    let mut files = Vec::new();
    gather(&root, &mut files);
    files.sort();
    let mut table = String::from("static PAGES: &[Page] = &[\n");
    for (n, file) in files.iter().enumerate() {
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let Some((_, kind)) = TYPES.iter().find(|(known, _)| *known == ending) else { continue };
        let below = file.strip_prefix(&root).expect("it lies below").to_str().expect("names are UTF-8");
        let path = if below == "index.html" { "/".to_owned() } else { format!("/{below}") };
        let bytes = fs::read(file).expect("it can be read");
        let packed = if PACKED.contains(&ending) { None } else { Some(gzip(&bytes)) };
        let (place, packed) = match packed.filter(|packed| packed.len() < bytes.len()) {
            Some(packed) => {
                let place = out.join(format!("page-{n}.gz"));
                fs::write(&place, packed).expect("it can be written");
                (place, true)
            }
            None => (file.clone(), false),
        };
        let place = place.to_str().expect("paths are UTF-8");
        writeln!(
            table,
            "    Page {{ path: {path:?}, content_type: {kind:?}, bytes: include_bytes!({place:?}), is_packed: {packed} }},"
        )
        .expect("a text takes all");
    }
    table.push_str("];\n");
    fs::File::create(out.join("pages.rs"))
        .and_then(|mut file| file.write_all(table.as_bytes()))
        .expect("it can be written");
}

/// Where a panic ends the program, the tables for going back through its callers are of no use: 0.7 MB less.
fn leave_out_unwind_tables(out: &Path) {
    let script = out.join("no-unwind-tables.ld");
    let sections = "*(.eh_frame .eh_frame.* .eh_frame_hdr .gcc_except_table .gcc_except_table.*)";
    fs::write(&script, format!("SECTIONS {{ /DISCARD/ : {{ {sections} }} }} INSERT AFTER .rodata;\n"))
        .expect("it can be written");
    let words = ["-Wl,--no-eh-frame-hdr".to_owned(), format!("-Wl,-T,{}", script.display())];
    link_with(out, &words);
}

fn env(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// Gives the linker these words if it takes them: it is asked by trying it, since not every one knows them all.
fn link_with(out: &Path, words: &[String]) {
    let source = out.join("trial.rs");
    let program = out.join("trial");
    fs::write(&source, "fn main() {}\n").expect("it can be written");
    let mut trial = Command::new(env("RUSTC").expect("cargo sets it"));
    trial.args(["--edition=2024", "-Cpanic=abort", "--target"]).arg(env("TARGET").expect("cargo sets it"));
    if let Some(linker) = env("RUSTC_LINKER") {
        trial.arg(format!("-Clinker={}", Path::new(&linker).display()));
    }
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    trial.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    trial.args(words.iter().map(|word| format!("-Clink-arg={word}")));
    trial.arg("-o").arg(&program).arg(&source).stdout(Stdio::null()).stderr(Stdio::null());
    if trial.status().is_ok_and(|status| status.success()) {
        for word in words {
            println!("cargo::rustc-link-arg-bins={word}");
        }
    }
}

/// All files below a folder. Cargo is told to look at each, and at each folder for new ones.
fn gather(folder: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo:rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder).expect("www can be read").flatten() {
        let path = entry.path();
        if path.is_dir() {
            gather(&path, files);
        } else {
            println!("cargo:rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
}

/// As gzip has it (RFC 1952), without a time, so that the same files give the same program.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    packed.extend(miniz_oxide::deflate::compress_to_vec(bytes, 10));
    packed.extend_from_slice(&crc32(bytes).to_le_bytes());
    packed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    packed
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
