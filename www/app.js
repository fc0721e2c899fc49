// Where the page begins: the entrance for who is not signed in, the frame with its tabs for who is.

import * as api from "./api.js";
import { showFrame, hideFrame, setOffline } from "./ui/frame.js";

const RETRY_MS = 4000;

let timer = 0;
let isIn = false;

/** Looks who is there, and shows what is for them. */
async function start() {
  clearTimeout(timer);
  let session;
  try {
    session = await api.session();
  } catch (error) {
    setOffline(error.message);
    timer = setTimeout(start, RETRY_MS);
    return;
  }
  setOffline("");
  isIn = session.signed_in;
  const isWalking = session.fresh && sessionStorage.getItem("walk") !== "done";
  if (session.signed_in && !isWalking) {
    showFrame(session, leave);
    return;
  }
  hideFrame();
  const entrance = await import("./entrance.js");
  await entrance.show(session, start);
}

/** Back to the sign-in, once: uploads go on asking, and what is being typed there is not taken away by that. */
function leave() {
  if (!isIn) return;
  isIn = false;
  hideFrame();
  start();
}
api.whenSignedOut(leave);
// Another tab may have signed in meanwhile.
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || isIn) return;
  const session = await api.session().catch(() => null);
  if (session?.signed_in && !isIn) start();
});
start();

// The shell of the page is kept by the browser where it allows that: over HTTPS or on the machine itself.
if ("serviceWorker" in navigator && isSecureContext) navigator.serviceWorker.register("/sw.js").catch(() => {});
