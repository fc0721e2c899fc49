// Two cells and their people: invitations, the fleet, sharing, the Feed, chat.

import assert from "node:assert/strict";
import { checkAxe, chooseFrom, goTo, signIn } from "./lib/browser.mjs";
import { Cell, befriend, png } from "./lib/cell.mjs";
import { test, waitFor } from "./lib/runner.mjs";

async function pair() {
  const [ann, bob] = await Promise.all([Cell.start("ann"), Cell.start("bob")]);
  await ann.setUp();
  await bob.setUp();
  return [ann, bob];
}

test("an invitation is made, revoked, made again and taken on the other cell's page", async () => {
  const [ann, bob] = await pair();
  const here = await signIn(ann);
  const there = await signIn(bob, { width: 390 });
  await goTo(here, "invites");
  await here.getByRole("button", { name: "Make an invitation" }).click();
  const first = await here.locator(".copy-box code").innerText();
  await here.locator("svg.qr").waitFor();
  await here.getByRole("button", { name: "Revoke" }).click();
  await here.locator("dialog").getByRole("button", { name: "Revoke" }).click();
  await here.getByText("The invitation does not work any more.").waitFor();
  await goTo(there, "invites");
  there.allow(/409/);
  await there.getByLabel("Invitation", { exact: true }).fill(first);
  await there.getByRole("button", { name: "Join" }).click();
  await there.locator(".problem:not([hidden])").waitFor();
  await here.getByText("A friend", { exact: true }).click();
  await here.getByRole("button", { name: "Make an invitation" }).click();
  const second = await waitFor("a new invitation", async () => {
    const text = await here.locator(".copy-box code").innerText();
    return text !== first && text;
  });
  await checkAxe(here, "an invitation");
  await there.getByLabel("Invitation", { exact: true }).fill(`Have a look: ${second} Bye`);
  await there.getByRole("button", { name: "Join" }).click();
  await there.getByText("You have met ann.").waitFor();
  await here.getByText("Used by bob").waitFor();
  await goTo(here, "fleet");
  await here.locator('.peer[data-name="bob"]').getByText("Friend", { exact: true }).waitFor();
  await here.done();
  await there.done();
  await ann.end();
  await bob.end();
});

test("the fleet: map, favorite, space, name, friendship, routes, and taking a cell out", async () => {
  const [ann, bob] = await pair();
  const { token } = await ann.api("POST", "invites", { role: "peer" });
  await bob.api("POST", "join", { token });
  const here = await signIn(ann);
  const there = await signIn(bob);
  await goTo(here, "fleet");
  const card = here.locator(".peer").first();
  await card.waitFor();
  await here.locator(".map .cell.on[data-peer]").waitFor();
  const act = (item) => chooseFrom(here, card.getByRole("button", { name: /What to do with/ }), { name: item });
  await act("Make it a favorite");
  await card.getByLabel("Favorite").waitFor();
  await act("Space for it here");
  await here.getByText("Up to a limit").click();
  await here.getByLabel("GB").fill("7");
  await here.getByRole("button", { name: "Save" }).click();
  await card.getByText("of 7.0 GB").waitFor();
  await act("Give it a name of yours");
  await here.locator("dialog").getByLabel("Name").fill("Bob's attic");
  await here.getByRole("button", { name: "Save" }).click();
  await card.getByRole("heading", { name: "Bob's attic" }).waitFor();
  await act("Ask to be friends");
  await card.getByText("Asked to be friends").waitFor();
  // The other side is told and answers.
  await goTo(there, "fleet");
  await there.getByText("ann wants to be your friend.").waitFor();
  await checkAxe(there, "a question for friendship");
  await there.getByRole("button", { name: "Accept", exact: true }).click();
  await card.getByText("Friend", { exact: true }).waitFor();
  await card.getByRole("button", { name: "Details" }).click();
  await card.getByText("In use").waitFor();
  await checkAxe(here, "details of a peer");
  await here.getByRole("button", { name: "Measure routes" }).click();
  await here.getByText("All routes were measured.").waitFor();
  await act("End the friendship");
  await here.locator("dialog").getByRole("button", { name: "End the friendship" }).click();
  await card.getByText("Friend", { exact: true }).waitFor({ state: "detached" });
  await act("Remove from the fleet");
  await here.locator("dialog").getByRole("button", { name: "Remove from the fleet" }).click();
  await here.getByText("No other cells yet").waitFor();
  await here.done();
  await there.done();
  await ann.end();
  await bob.end();
});

test("what one shares the other sees, looks at, keeps and adds; and it is taken back", async () => {
  const [ann, bob] = await pair();
  await befriend(ann, bob);
  ann.put("Holiday/boat.png", await png(120, 80, [30, 90, 200]));
  ann.put("recipe.txt", "soup: water, salt");
  await ann.settle();
  const here = await signIn(ann);
  const there = await signIn(bob);
  await goTo(there, "feed");
  await goTo(here, "files");
  const share = async (name) => {
    await chooseFrom(here, here.locator(`.virtual > li[data-name="${name}"]`).getByRole("button", { name: /What to do with/ }), { name: "Share" });
    await here.locator("dialog").getByText("bob").click();
    await checkAxe(here, "sharing");
    await here.getByRole("button", { name: "Save" }).click();
    await here.getByText(`${name} is shared.`).waitFor();
  };
  await share("recipe.txt");
  await share("Holiday");
  await here.locator('.virtual > li[data-name="recipe.txt"]').getByLabel("Shared with friends").waitFor();
  // It shows up there by itself.
  const recipe = there.locator('.feed-row[data-name="recipe.txt"]');
  const boat = there.locator('.feed-row[data-name="boat.png"]');
  await recipe.waitFor();
  await boat.waitFor();
  await recipe.getByRole("button", { name: "recipe.txt", exact: true }).click();
  await there.getByText("soup: water, salt").waitFor();
  await there.keyboard.press("Escape");
  await recipe.getByRole("button", { name: "Add to my files" }).click();
  await there.getByText("recipe.txt is in your files now.").waitFor();
  assert.equal(bob.read("recipe.txt").toString(), "soup: water, salt");
  await chooseFrom(there, boat.getByRole("button", { name: /What to do with/ }), { name: "Keep up to date" });
  await there.locator("dialog").getByRole("button", { name: "Keep up to date" }).click();
  await boat.getByText("Kept").waitFor();
  await waitFor("the kept file is there", () => bob.has("Shared/ann/Holiday/boat.png") || bob.has("Shared/ann/boat.png"));
  await goTo(here, "feed");
  await here.getByRole("button", { name: "By me" }).click();
  await checkAxe(here, "what I share");
  const mine = here.locator('.feed-row[data-path="recipe.txt"]');
  await mine.getByRole("button", { name: "Stop sharing" }).click();
  await here.locator("dialog").getByRole("button", { name: "Stop sharing" }).click();
  await mine.waitFor({ state: "detached" });
  await recipe.waitFor({ state: "detached" });
  await here.done();
  await there.done();
  await ann.end();
  await bob.end();
});

test("friends talk: at once, marked as read, with files, found again and deleted", async () => {
  const [ann, bob] = await pair();
  await befriend(ann, bob);
  ann.put("plan.txt", "up the hill");
  await ann.settle();
  const here = await signIn(ann);
  const there = await signIn(bob);
  await goTo(here, "chat");
  await here.locator(".talk", { hasText: "bob" }).click();
  await here.getByLabel("Your message").fill("The soup is on.\nCome over.");
  await here.keyboard.press("Enter");
  await here.locator(".bubble.ours", { hasText: "The soup is on." }).waitFor();
  // The other side is told wherever it is, reads, and answers.
  await there.locator(".side a[data-tab=chat] .badge:not([hidden])").waitFor();
  await goTo(there, "chat");
  await there.locator(".talk", { hasText: "ann" }).click();
  await there.locator(".bubble", { hasText: "The soup is on." }).waitFor();
  await here.locator(".bubble.ours .ticks.read").waitFor();
  await there.locator(".side a[data-tab=chat] .badge").waitFor({ state: "hidden" });
  await there.getByLabel("Your message").fill("On my way 🚲");
  await there.getByRole("button", { name: "Send" }).click();
  await here.locator(".bubble:not(.ours)", { hasText: "On my way" }).waitFor();
  await checkAxe(here, "a conversation");
  // A file goes along.
  await here.getByRole("button", { name: "Attach files" }).click();
  await here.locator("dialog").getByText("plan.txt").click();
  await here.locator("dialog").getByRole("button", { name: "Attach" }).click();
  await here.getByLabel("Your message").fill("the plan");
  await here.keyboard.press("Enter");
  const file = there.locator(".bubble-file", { hasText: "plan.txt" });
  await file.waitFor();
  await file.getByRole("button", { name: "plan.txt", exact: true }).click();
  await there.getByText("up the hill").waitFor();
  await there.keyboard.press("Escape");
  await file.getByRole("button", { name: "Add to my files" }).click();
  await waitFor("it is in the other's files", () => bob.has("plan.txt"));
  // What is written while a message is on its way is the next one; what could not be sent stands before it, and comes once.
  const said = here.getByLabel("Your message");
  here.allow(/net::ERR_FAILED .*chat\/send/);
  let tries = 0;
  let answer;
  const answered = new Promise((done) => { answer = done; });
  await here.route("**/api/v1/chat/send", async (route) => {
    tries += 1;
    if (tries > 1) return route.continue();
    const told = await route.fetch();
    await answered;
    assert.equal(told.status(), 200);
    return route.abort();
  });
  await said.fill("It is hot.");
  await here.keyboard.press("Enter");
  await here.waitForFunction(() => document.querySelector(".composer textarea").value === "");
  await said.fill("Bring spoons.");
  answer();
  await here.waitForFunction(() => document.querySelector(".composer textarea").value === "It is hot.\nBring spoons.");
  await said.fill("It is hot.");
  await here.keyboard.press("Enter");
  await said.fill("Bring spoons.");
  await here.keyboard.press("Enter");
  await here.locator(".bubble.ours", { hasText: "Bring spoons." }).waitFor();
  await there.locator(".bubble", { hasText: "Bring spoons." }).waitFor();
  assert.equal(await there.locator(".bubble", { hasText: "It is hot." }).count(), 1);
  await here.unroute("**/api/v1/chat/send");
  // Found and deleted. Before that the list has the newest word, not the one that is searched for.
  await here.locator(".talk", { hasText: "Bring spoons." }).waitFor();
  await here.getByLabel("Search messages").fill("way");
  await here.locator(".talk", { hasText: "On my way" }).click();
  await here.locator(".bubble.found").waitFor();
  await here.locator(".bubble.ours", { hasText: "The soup is on." }).hover();
  await here.locator(".bubble.ours", { hasText: "The soup is on." }).getByRole("button", { name: "More about this message" }).click();
  await here.getByRole("menuitem", { name: "Delete here" }).click();
  await here.locator("dialog").getByRole("button", { name: "Delete here" }).click();
  await here.locator(".bubble.ours", { hasText: "The soup is on." }).waitFor({ state: "detached" });
  await there.locator(".bubble", { hasText: "The soup is on." }).waitFor();
  await here.done();
  await there.done();
  await ann.end();
  await bob.end();
});
