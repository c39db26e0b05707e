const data = JSON.parse(document.getElementById("data").textContent);
const groups = [...document.querySelectorAll("g.series")];
for (const name of new Set(groups.map(g => g.dataset.series))) {
  const mine = groups.filter(g => g.dataset.series === name), group = mine[0];
  const button = document.createElement("button"), swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = group.querySelector(".name").style.fill;
  button.append(swatch, group.dataset.series);
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    const shown = group.style.display === "none";
    for (const g of mine) g.style.display = shown ? "" : "none";
    button.setAttribute("aria-pressed", String(shown));
  };
  bar.insertBefore(button, theme);
}
const tip = document.getElementById("tip");
const say = (tag, text) => { const e = document.createElement(tag); e.textContent = text; tip.append(e); };
function show(mark) {
  const p = data.points[mark.dataset.key], at = mark.getBoundingClientRect();
  tip.replaceChildren();
  say("b", p.series + ", " + p.label);
  say("div", p.bytes.toLocaleString("en") + " bytes, " + p.bits_per_weight.toFixed(3) + " bits a weight");
  say("div", p.bpb.toFixed(5) + " bits per byte, rise " + p.rise.toFixed(5));
  if (p.kl !== undefined) say("div", "KL " + p.kl.toFixed(5) + ", " + (100 * p.same_top).toFixed(2) + "% same likeliest");
  if (p.rise_spread !== undefined) say("div", "spread over seeds " + p.rise_spread.toFixed(5));
  tip.style.display = "block";
  const width = tip.offsetWidth, left = at.right + scrollX + 10;
  tip.style.left = Math.max(4, left + width > root.clientWidth ? at.left + scrollX - width - 10 : left) + "px";
  tip.style.top = Math.max(scrollY + 4, at.top + scrollY - tip.offsetHeight - 6) + "px";
}
const hide = () => { tip.style.display = "none"; };
for (const mark of document.querySelectorAll(".mark")) {
  mark.addEventListener("pointerenter", () => show(mark));
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}
