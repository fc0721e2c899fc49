// All tests of the dashboard. `node all.mjs [word…]`: those whose names have one of the words.

import fs from "node:fs";
import { chromiumPath, closeBrowser } from "./lib/browser.mjs";
import { GROVE, endAll } from "./lib/cell.mjs";
import { runAll } from "./lib/runner.mjs";
import "./static.test.mjs";
import "./walk.test.mjs";
import "./files.test.mjs";
import "./uploads.test.mjs";
import "./friends.test.mjs";
import "./settings.test.mjs";
import "./ai.test.mjs";
import "./live.test.mjs";
import "./bounty.test.mjs";
import "./hostile.test.mjs";
import "./many.test.mjs";
import "./looks.test.mjs";

if (!fs.existsSync(GROVE) || !chromiumPath()) {
  console.log(`browser tests need the built program (${GROVE}) and chromium`);
  process.exit(1);
}
// Whatever hangs, a browser that does not end among it: the run does end, and counts as failed.
setTimeout(() => {
  console.log("the browser tests took longer than 35 minutes\nbrowser tests: 0 passed, 1 failed, 0 skipped");
  process.exit(1);
}, 2_100_000).unref();
const isFine = await runAll(process.argv.slice(2));
await closeBrowser();
await endAll();
process.exit(isFine ? 0 : 1);
