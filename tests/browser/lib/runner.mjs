// Runs tests one after another and counts them. Works the same on every Node.js from 18 on.

const tests = [];
const witnesses = [];
const LINE_MAX = 300;
// How long one test and one wait may take: it costs nothing where all is well, and a busy machine is slow.
const TEST_MIN_MAX = 10;
const WAIT_MS_MAX = 120_000;

/** Skips the test that throws it, with the reason. */
export class Skip extends Error {}

/** Registers a test. */
export function test(name, run) {
  tests.push({ name, run });
}

/**
 * Registers who is asked after each test: `tell` for what helps to understand a failure, as text, and `tidy` to end what the
 * test has left, so that one failure does not make the next.
 */
export function witness(tell, tidy) {
  witnesses.push({ tell, tidy });
}

/** What is known about a failure: never fails itself, and never takes long. */
async function testimony() {
  const told = [];
  for (const { tell } of witnesses) {
    const late = new Promise((done) => { setTimeout(() => done("(no answer within 20 s)"), 20_000).unref(); });
    told.push(await Promise.race([tell(), late]).catch((error) => `(${error.message})`));
  }
  return told.join("\n").split("\n").filter(Boolean).map((line) => `  | ${line.slice(0, LINE_MAX)}`).join("\n");
}

/** Runs all whose name has one of the words given; gives whether none failed. */
export async function runAll(words) {
  const count = { passed: 0, failed: 0, skipped: 0 };
  const chosen = tests.filter(({ name }) => words.length === 0 || words.some((word) => name.includes(word)));
  for (const { name, run } of chosen) {
    const began = Date.now();
    const limit = new Promise((_, failed) => { setTimeout(() => failed(new Error(`it took longer than ${TEST_MIN_MAX} minutes`)), TEST_MIN_MAX * 60_000).unref(); });
    let outcome = "passed";
    let why = "";
    try {
      await Promise.race([run(), limit]);
    } catch (error) {
      outcome = error instanceof Skip ? "skipped" : "failed";
      why = error instanceof Skip ? ` (${error.message})` : `\n${error.stack}${error.cause ? `\ncause: ${error.cause}` : ""}\n${await testimony()}\n`;
    }
    if (outcome === "failed") for (const { tidy } of witnesses) await tidy().catch((error) => console.log(`  tidying up: ${error.message}`));
    count[outcome] += 1;
    console.log(`browser test ${name} ... ${outcome}${why} [${((Date.now() - began) / 1000).toFixed(1)} s]`);
  }
  console.log(`browser tests: ${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
  return count.failed === 0;
}

/** Asks until there is an answer. */
export async function waitFor(what, ask, limit = WAIT_MS_MAX) {
  const end = Date.now() + limit;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}
