//! What in GroveHome is not kept: leftovers of editors and downloads, and what `.groveignore` names. Pure.

/// A rule of `.groveignore`, in the manner of `.gitignore`: one to a line, `#` comments, `!` takes back, a trailing
/// `/` is for folders only, a `/` elsewhere ties it to the folder of the file, `*` and `?` stay within a name, `**`
/// does not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    pattern: Pattern,
    takes_back: bool,
    folders_only: bool,
    tied: bool,
}

/// Most rules need no glob: they are looked at for every name of every scan.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(Vec<u8>),
    Begins(Vec<u8>),
    Ends(Vec<u8>),
    Glob(Vec<u8>),
}

impl Pattern {
    fn new(text: &[u8]) -> Self {
        let is_plain = |text: &[u8]| !text.iter().any(|c| matches!(c, b'*' | b'?' | b'['));
        match text {
            _ if is_plain(text) => Self::Exact(text.to_vec()),
            [b'*', rest @ ..] if is_plain(rest) && !rest.contains(&b'/') => Self::Ends(rest.to_vec()),
            [rest @ .., b'*'] if is_plain(rest) && !rest.contains(&b'/') => Self::Begins(rest.to_vec()),
            _ => Self::Glob(text.to_vec()),
        }
    }

    fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(pattern) => text == pattern,
            Self::Begins(pattern) => text.starts_with(pattern),
            Self::Ends(pattern) => text.ends_with(pattern),
            Self::Glob(pattern) => text.starts_with(plain_head(pattern)) && glob(pattern, text),
        }
    }
}

/// What a pattern begins with that stands for itself.
fn plain_head(pattern: &[u8]) -> &[u8] {
    let len = pattern.iter().position(|c| matches!(c, b'*' | b'?' | b'['));
    &pattern[..len.unwrap_or(pattern.len())]
}

/// Which names a rule may match at all, by their first and last bytes: nearly no name gets further.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ends {
    first: Bytes,
    last: Bytes,
}

/// A set of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Bytes([u64; 4]);

impl Bytes {
    /// `None` stands for all of them.
    fn add(&mut self, byte: Option<&u8>) {
        match byte {
            Some(byte) => self.0[usize::from(byte >> 6)] |= 1 << (byte & 63),
            None => self.0 = [u64::MAX; 4],
        }
    }

    fn has(&self, byte: Option<&u8>) -> bool {
        byte.is_none_or(|byte| self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1)
    }
}

impl Ends {
    fn of(rules: &[Rule]) -> Self {
        let mut ends = Self::default();
        for rule in rules {
            match &rule.pattern {
                // Its text is the whole path.
                _ if rule.tied => ends.first.add(None),
                Pattern::Exact(text) | Pattern::Begins(text) => ends.first.add(text.first()),
                Pattern::Ends(text) => ends.last.add(text.last()),
                Pattern::Glob(text) => ends.first.add(plain_head(text).first()),
            }
        }
        ends
    }

    fn may_match(&self, name: &[u8]) -> bool {
        self.first.has(name.first()) || self.last.has(name.last())
    }
}

/// The rules that hold in GroveHome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreRules {
    rules: Vec<Rule>,
    has_tied: bool,
    ends: Ends,
}

/// Leftovers that nobody wants kept.
const BUILT_IN: &str = "
*~
.*.sw[a-p]
.#*
#*#
*.part
*.partial
*.crdownload
*.download
*.tmp
~$*
.~lock.*#
.DS_Store
Thumbs.db
desktop.ini
.Trash-*/
.directory
.fuse_hidden*
.nfs*
.goutputstream-*
.sb-*
.stfolder/
.syncthing.*.tmp
~syncthing~*.tmp
lost+found/
";

/// Name of the file with the user's rules, in GroveHome.
pub const RULES_NAME: &[u8] = b".groveignore";
/// Bytes of it that are read.
pub const RULES_BYTES_MAX: u64 = 256 * 1024;
/// Mark that this folder is GroveHome and its disk is there.
pub const MARKER_NAME: &[u8] = b".grove-home";

impl IgnoreRules {
    /// The built-in rules and then the user's, so that the user can take back.
    pub fn new(text: &[u8]) -> Self {
        let rules = BUILT_IN.as_bytes().split(|c| *c == b'\n').chain(text.split(|c| *c == b'\n'));
        let rules: Vec<Rule> = rules.filter_map(Rule::parse).collect();
        let has_tied = rules.iter().any(|rule| rule.tied);
        let ends = Ends::of(&rules);
        Self { rules, has_tied, ends }
    }

    /// Whether what lies at `path` (names from GroveHome down) is left out. A folder left out is not looked into.
    pub fn ignores(&self, path: &[Vec<u8>], is_folder: bool) -> bool {
        let Some(name) = path.last() else { return false };
        if path.len() == 1 && name == MARKER_NAME || name.starts_with(super::unix::TEMP_PREFIX) {
            return true;
        }
        // What is on its way from friends, and their bin.
        if path.len() == 2 && path[0] == super::kept::SHARED && name == super::kept::OWN {
            return true;
        }
        if !self.ends.may_match(name) {
            return false;
        }
        let joined = if self.has_tied { path.join(&b'/') } else { Vec::new() };
        let last = self.rules.iter().rev().find(|rule| {
            (is_folder || !rule.folders_only) && rule.pattern.matches(if rule.tied { &joined } else { name })
        });
        last.is_some_and(|rule| !rule.takes_back)
    }
}

impl Rule {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut pattern = line.trim_ascii();
        if pattern.is_empty() || (pattern[0] == b'#' && pattern.last() != Some(&b'#') && pattern != b"#*#") {
            return None;
        }
        let takes_back = pattern[0] == b'!';
        if takes_back {
            pattern = &pattern[1..];
        }
        let folders_only = pattern.last() == Some(&b'/');
        if folders_only {
            pattern = &pattern[..pattern.len() - 1];
        }
        let tied = pattern.contains(&b'/');
        let pattern = pattern.strip_prefix(b"/").unwrap_or(pattern);
        (!pattern.is_empty()).then(|| Self { pattern: Pattern::new(pattern), takes_back, folders_only, tied })
    }
}

/// Whether `text` matches `pattern`. Takes time in proportion to the product of their lengths at most.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // reached[i]: the pattern so far matches text[..i].
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; text.len() + 1];
        match pattern[at] {
            b'*' => {
                let deep = pattern.get(at + 1) == Some(&b'*');
                at += if deep { 2 } else { 1 };
                // `**/` matches no folder too.
                let skip_slash = deep && pattern.get(at) == Some(&b'/');
                if skip_slash {
                    at += 1;
                }
                let mut open = false;
                for i in 0..=text.len() {
                    if i > 0 && open && !deep && text[i - 1] == b'/' {
                        open = false;
                    }
                    let ends_folder = i == 0 || text[i - 1] == b'/';
                    next[i] = reached[i] || (open && (!skip_slash || ends_folder));
                    open |= reached[i];
                }
                reached = next;
                continue;
            }
            b'?' => {
                for i in 0..text.len() {
                    next[i + 1] = reached[i] && text[i] != b'/';
                }
            }
            b'[' if pattern[at + 1..].contains(&b']') => {
                let end =
                    at + 1 + pattern[at + 1..].iter().position(|c| *c == b']').expect("looked for above");
                let set = &pattern[at + 1..end];
                for i in 0..text.len() {
                    next[i + 1] = reached[i] && in_set(set, text[i]);
                }
                at = end;
            }
            c => {
                for i in 0..text.len() {
                    next[i + 1] = reached[i] && text[i] == c;
                }
            }
        }
        at += 1;
        reached = next;
    }
    reached[text.len()]
}

fn in_set(set: &[u8], c: u8) -> bool {
    let (negated, set) = match set.first() {
        Some(b'!' | b'^') => (true, &set[1..]),
        _ => (false, set),
    };
    let mut found = false;
    let mut at = 0;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == b'-' {
            found |= (set[at]..=set[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= set[at] == c;
            at += 1;
        }
    }
    found != negated && c != b'/'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignores(rules: &str, path: &str) -> bool {
        let names: Vec<Vec<u8>> =
            path.trim_end_matches('/').split('/').map(|name| name.as_bytes().to_vec()).collect();
        IgnoreRules::new(rules.as_bytes()).ignores(&names, path.ends_with('/'))
    }

    #[test]
    fn leftovers_of_editors_and_downloads_are_left_out() {
        for path in [
            "a/notes.txt~",
            ".notes.swp",
            "x/film.mp4.part",
            "~$letter.docx",
            "#draft#",
            ".#draft",
            ".grove-home",
        ] {
            assert!(ignores("", path), "{path}");
        }
        for path in ["notes.txt", "a/.grove-home", ".groveignore", "swp", "part", "a~b"] {
            assert!(!ignores("", path), "{path}");
        }
    }

    #[test]
    fn users_rules_add_and_take_back() {
        let rules = "# mine\n*.iso\n!keep.iso\n/build/\ncache/\ndocs/*.pdf\nsrc/**/target\n";
        for path in ["a/big.iso", "build/", "a/cache/", "docs/x.pdf", "src/target", "src/a/b/target"] {
            assert!(ignores(rules, path), "{path}");
        }
        for path in ["keep.iso", "a/build/", "build", "a/cache", "docs/a/x.pdf", "a/src/target"] {
            assert!(!ignores(rules, path), "{path}");
        }
        assert!(!ignores("!*~\n", "notes.txt~"));
    }

    #[test]
    fn short_cut_by_ends_of_names_leaves_out_what_all_rules_do() {
        let rules = "*.iso\n!keep.iso\n*x*\n?b\n[cd]e\nf[\nq*r\n";
        let all = IgnoreRules::new(rules.as_bytes());
        for rules in [rules, "", "q*r\n", "*\n", "/a/b\n"] {
            let short = IgnoreRules::new(rules.as_bytes());
            let full = IgnoreRules {
                ends: Ends { first: Bytes([u64::MAX; 4]), last: Bytes::default() },
                ..short.clone()
            };
            for name in all.rules.iter().map(|rule| match &rule.pattern {
                Pattern::Exact(text) | Pattern::Begins(text) | Pattern::Ends(text) | Pattern::Glob(text) => {
                    text
                }
            }) {
                for name in [name.clone(), [b"a", &name[..]].concat(), [&name[..], b"a"].concat()] {
                    for path in [vec![name.clone()], vec![b"a".to_vec(), name]] {
                        assert_eq!(
                            short.ignores(&path, false),
                            full.ignores(&path, false),
                            "{path:?} with {rules:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn hostile_patterns_end_in_time() {
        let pattern = "*a".repeat(200);
        let name = "a".repeat(255) + "b";
        assert!(!ignores(&pattern, &name));
    }
}
