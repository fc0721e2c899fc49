// The tabs in their order. A new one is a file here that exports `open(root, ctx)`, a line below, its texts in texts.js
// (`tab.ID` is its title) and its styles in style.css.

/** @typedef {{id: string, icon: string, isShown: (state: {session: object, status: object}) => boolean, load: () => Promise<object>}} Tab */

/** @type {Tab[]} */
export const TABS = [
  { id: "home", icon: "home", isShown: () => true, load: () => import("./home.js") },
  { id: "files", icon: "files", isShown: () => true, load: () => import("./files.js") },
  { id: "feed", icon: "feed", isShown: () => true, load: () => import("./feed.js") },
  { id: "chat", icon: "chat", isShown: () => true, load: () => import("./chat.js") },
  { id: "ai", icon: "spark", isShown: () => true, load: () => import("./ai.js") },
  { id: "fleet", icon: "fleet", isShown: () => true, load: () => import("./fleet.js") },
  { id: "bounty", icon: "leaf", isShown: () => true, load: () => import("./bounty.js") },
  { id: "invites", icon: "invite", isShown: () => true, load: () => import("./invites.js") },
  { id: "settings", icon: "settings", isShown: () => true, load: () => import("./settings.js") },
  { id: "help", icon: "help", isShown: () => true, load: () => import("./help.js") },
];

/** Tabs at the bottom of a phone; the others are behind "More". */
export const FIRST = ["home", "files", "feed", "chat"];
