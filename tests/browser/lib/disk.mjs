// For whoever works on the pages: with WWW_FROM_DISK=1 they come from www/ and the rest from the cell, so that a change needs
// no build. Not used by `make test`.

import fs from "node:fs";
import http from "node:http";
import path from "node:path";

const TYPES = { html: "text/html; charset=utf-8", css: "text/css", js: "text/javascript", mjs: "text/javascript", svg: "image/svg+xml", png: "image/png", webmanifest: "application/manifest+json" };
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; connect-src 'self'; frame-src 'self'; manifest-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/** Serves `www` in front of the cell at `port`; gives the port to go to. */
export async function serve(www, port, at = 0) {
  const server = http.createServer((request, response) => {
    const where = request.url.split("?")[0];
    if (/^\/(api|v1|metrics|healthz)(\/|$)/.test(where)) {
      const headers = { ...request.headers, host: `127.0.0.1:${port}` };
      if (headers.origin) headers.origin = `http://127.0.0.1:${port}`;
      const onward = http.request({ host: "127.0.0.1", port, method: request.method, path: request.url, headers }, (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
        answer.on("error", () => response.destroy());
      });
      onward.on("error", () => response.destroy());
      response.on("close", () => onward.destroy());
      request.pipe(onward);
      return;
    }
    fs.readFile(path.join(www, where === "/" ? "index.html" : where), (error, bytes) => {
      response.writeHead(error ? 404 : 200, { "Content-Type": TYPES[where === "/" ? "html" : where.split(".").pop()] ?? "text/plain", "Cache-Control": "no-cache", "Content-Security-Policy": POLICY });
      response.end(error ? "" : bytes);
    });
  });
  await new Promise((done) => server.listen(at, "127.0.0.1", done));
  server.unref();
  return server.address().port;
}
