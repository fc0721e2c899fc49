// Keeps the shell of the page, so that it opens at once and says itself that the cell does not answer.
//
// The network comes first, always: a new version of the cell is seen at the next visit. Nothing of the API is ever kept.

const SHELL = "grove-shell-1";

self.addEventListener("install", () => self.skipWaiting());

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) if (name !== SHELL) await caches.delete(name);
    await self.clients.claim();
  })());
});

const isShell = (request) => {
  const { origin, pathname } = new URL(request.url);
  return request.method === "GET" && origin === self.location.origin
    && !/^\/(api|v1|metrics|healthz|relay)(\/|$)/.test(pathname);
};

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (!isShell(request)) return;
  event.respondWith((async () => {
    const shell = await caches.open(SHELL);
    try {
      const fresh = await fetch(request);
      if (fresh.ok && fresh.type === "basic") await shell.put(request, fresh.clone());
      return fresh;
    } catch (why) {
      const kept = await shell.match(request);
      if (kept) return kept;
      throw why;
    }
  })());
});
