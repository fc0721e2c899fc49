// Names and kinds of files. Names travel as the cell writes them.

export const join = (folder, name) => (folder ? `${folder}/${name}` : name);
export const split = (path) => {
  const at = path.lastIndexOf("/");
  return at < 0 ? ["", path] : [path.slice(0, at), path.slice(at + 1)];
};

/** A name or path of the cell as text for people: `%25` is a percent sign, and what is no text shows as such. */
export function show(wire) {
  if (!wire.includes("%")) return wire;
  const bytes = [];
  for (let at = 0; at < wire.length;) {
    if (/^%[0-9A-Fa-f]{2}/.test(wire.slice(at, at + 3))) {
      bytes.push(parseInt(wire.slice(at + 1, at + 3), 16));
      at += 3;
    } else {
      const letter = String.fromCodePoint(wire.codePointAt(at));
      bytes.push(...new TextEncoder().encode(letter));
      at += letter.length;
    }
  }
  return new TextDecoder().decode(new Uint8Array(bytes)).replace(/[\u0000-\u001f\u007f-\u009f]/g, "\ufffd");
}

/** What a person typed as the cell takes it. */
export const wire = (text) => text.replaceAll("%", "%25");

const KINDS = {
  image: "jpg jpeg png gif webp avif bmp ico",
  video: "mp4 m4v webm mov ogv",
  audio: "mp3 m4a aac ogg oga opus wav flac",
  text: "txt md markdown csv tsv log json xml html htm css js mjs ts rs py sh c h cpp hpp java go rb php toml yaml yml ini conf cfg sql tex srt vtt diff patch svg",
  pdf: "pdf",
  archive: "zip tar gz tgz xz bz2 zst 7z rar deb iso",
};
const BY_ENDING = new Map(Object.entries(KINDS).flatMap(([kind, endings]) => endings.split(" ").map((ending) => [ending, kind])));

/** `image`, `video`, `audio`, `text`, `pdf`, `archive` or `file`, by the name's ending. */
export function kindOf(name) {
  const at = name.lastIndexOf(".");
  return at > 0 ? BY_ENDING.get(name.slice(at + 1).toLowerCase()) ?? "file" : "file";
}

/** What can be looked at in the page. */
export const isSeen = (kind) => ["image", "video", "audio", "text", "pdf"].includes(kind);

export const iconOf = (entry) => (entry.kind === "folder" ? "folder" : entry.kind === "symlink" ? "link" : kindOf(entry.name));

/** A name that is not taken: `photo (2).jpg`. */
export function numbered(name, n) {
  const at = name.lastIndexOf(".");
  return at > 0 ? `${name.slice(0, at)} (${n})${name.slice(at)}` : `${name} (${n})`;
}
