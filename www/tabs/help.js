// The pages of docs/, shown within the frame. They are part of the program and open by themselves, too: /docs/.

const PAGES = ["index", "sharing", "recovery", "security", "trouble"];

let turn = () => {};

export async function open(root, ctx) {
  const { el, t } = ctx;
  const { root: page, body } = ctx.page(t("tab.help"));
  body.classList.add("settings-body");
  const links = PAGES.map((name) => el("a", { href: name === "index" ? ctx.href("help") : ctx.href("help", name), data: { part: name } }, el("span", {}, t(`help.${name}`))));
  const article = el("article", { className: "card doc-text" });
  body.append(el("nav", { className: "sub-nav", aria: { label: t("help.pages") } }, links), article);
  root.append(page);
  turn = async (path) => {
    const name = PAGES.includes(path[0]) ? path[0] : "index";
    for (const link of links) {
      if (link.dataset.part === name) {
        link.setAttribute("aria-current", "page");
        link.parentElement.scrollLeft = link.offsetLeft - 40;
      } else link.removeAttribute("aria-current");
    }
    try {
      const response = await fetch(`/docs/${name}.html`, { signal: ctx.signal });
      if (!response.ok) throw new Error(t("error.unknown"));
      const main = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("main");
      for (const link of main.querySelectorAll("a[href$='.html']")) {
        const to = link.getAttribute("href").replace(/\.html$/, "");
        link.setAttribute("href", to === "index" ? ctx.href("help") : ctx.href("help", to));
      }
      // One heading of the first level is on the page already.
      const heading = main.querySelector("h1");
      heading?.replaceWith(el("h2", { className: "prose-title" }, heading.textContent));
      article.replaceChildren(...document.importNode(main, true).childNodes);
      if (path[1]) article.querySelector(`#${CSS.escape(path[1])}`)?.scrollIntoView();
      else scrollTo(0, 0);
    } catch {
      if (!ctx.signal.aborted) article.replaceChildren(el("p", { className: "problem" }, t("error.no_answer")));
    }
  };
  await turn(ctx.path);
}

export function moved(path) {
  turn(path);
}
