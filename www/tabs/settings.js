export function open(root, ctx) {
  root.append(ctx.page(ctx.t("tab.settings")).root);
}
