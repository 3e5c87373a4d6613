"""What runs in the browser: JavaScript that keeps picture and table in step, marks cards, and scrolls."""

import json

from attribution.ui.regions import EMPTY, MOST
from attribution.ui.style import COLOURS

# A click on a card opens its image; what is opened, hovered or focused is marked in every ranking.
CARDS = """
const cards = (row) => document.querySelectorAll(`.card[data-row="${row}"]`);
const rowOf = (event) => event.target.closest?.(".card[data-row]")?.dataset.row;
const mark = (event) => {
  document.querySelectorAll(".card.marked").forEach((card) => card.classList.remove("marked"));
  const row = rowOf(event);
  if (row !== undefined) cards(row).forEach((card) => card.classList.add("marked"));
};
element.addEventListener("click", (event) => {
  const copy = event.target.closest?.("[data-copy]");
  if (copy) window.copyLink(copy);
  const row = rowOf(event);
  if (row === undefined) return;
  document.querySelectorAll(".card.chosen").forEach((card) => card.classList.remove("chosen"));
  cards(row).forEach((card) => card.classList.add("chosen"));
  window.opening = event.target.closest(".card");
  trigger("select", {row: Number(row)});
});
element.addEventListener("mouseover", mark);
element.addEventListener("focusin", mark);
"""
EXAMPLES = """
element.addEventListener("click", (event) => {
  const run = event.target.closest?.("[data-run]")?.dataset.run;
  if (run) trigger("select", {run});
});
"""
CHIPS = """
element.addEventListener("click", (event) => {
  const word = event.target.closest?.("[data-word]")?.dataset.word;
  if (word !== undefined) trigger("select", {word});
});
"""
SMOOTH = "behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'"
# The height that the answers had is kept while others take their place, so that nothing jumps. Waits until there is
# something to read: a page without answers is too short to scroll that far.
TO_ANSWERS = f"""async () => {{
  const answers = document.querySelector("#answers");
  const works = () => document.querySelector("#run-status .status:is([data-state=waiting], [data-state=running])");
  if (answers) answers.style.minHeight = answers.offsetHeight + "px";
  const settle = setInterval(() => {{
    if (works()) return;
    clearInterval(settle);
    if (answers) answers.style.minHeight = "";
  }}, 1500);
  for (let i = 0; i < 100 && !document.querySelector(".asked, .status:is([data-state=error], [data-state=asked])"); i++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  document.querySelector("#acts").scrollIntoView({{block: "start", {SMOOTH}}});
}}"""
# After a link: it opens at the answer, which was hidden until it was there.
TO_LINKED = f"""async () => {{
  delete document.documentElement.dataset.opening;
  if (new URLSearchParams(location.search).get("run")) await ({TO_ANSWERS})();
}}"""
TO_OPENED = "() => document.querySelector('.opened')?.focus({preventScroll: true})"
# Back to the card that was opened.
CLOSED = """() => {
  document.querySelector(".panel .card.chosen button")?.focus({preventScroll: true});
  document.querySelectorAll(".card.chosen").forEach((card) => card.classList.remove("chosen"));
}"""

# Sides of a drawn box in pixels of the picture. Why nothing could be answered about sides that are in the picture, as a
# sentence; "" where it could.
_SIDES = """
const drawnSides = (box) =>
  [box.xmin, box.ymin, box.xmax, box.ymax].map((side) => side / frame.factor / (box.scaleFactor || 1));
const whyNot = ([x0, y0, x1, y1]) => {
  const {least = 0, seen: [left, top, right, bottom] = [0, 0, frame.width, frame.height]} = frame;
  if (Math.min(x1 - x0, y1 - y0) < least - 1e-6)
    return `That box was too small: ${Math.ceil(least)} px a side or more are accepted.`;
  if (x1 <= left || x0 >= right || y1 <= top || y0 >= bottom)
    return "That box was outside what the model sees, the middle square of the picture.";
  return "";
};
"""

_VALID = f"""
{_SIDES}
const colours = {json.dumps([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS])};
const rows = (table?.data ?? []).filter((row) => row.some((value) => value !== null && value !== ""));
const sidesOf = (row) => row.slice(1).map((side) => (side === "" || side === null ? NaN : Number(side)));
const isBox = ([x0, y0, x1, y1]) =>
  0 <= x0 && x0 < x1 && x1 <= frame.width && 0 <= y0 && y0 < y1 && y1 <= frame.height && !whyNot([x0, y0, x1, y1]);
const asItIs = {{__type__: "update"}};
const partsOf = (colour) => Array.isArray(colour) ? colour.map(Number) : /^#/.test(colour)
  ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : (String(colour).match(/\\d+/g) ?? []).map(Number);
const placeOf = (colour) => colours.findIndex((each) => each.join() === partsOf(colour).slice(0, 3).join());
// By box, the place of its colour: a box keeps its own, the older before the newer, which the annotator puts first.
const placesOf = (boxes) => {{
  const places = boxes.map(() => -1);
  for (let at = boxes.length - 1; at >= 0; at--) {{
    const place = placeOf(boxes[at].color);
    if (!places.includes(place)) places[at] = place;
  }}
  return places.map((place, at) => {{
    if (place < 0) places[at] = Math.max(0, colours.findIndex((_, free) => !places.includes(free)));
    return places[at];
  }});
}};
const coloured = (boxes) => placesOf(boxes).map((place, at) => ({{...boxes[at], color: `rgb(${{colours[place]}})`}}));
"""

# (annotator, frame, table) -> table, annotator. A box keeps its colour, a new one has one of its own as soon as it is
# drawn, and a name: a new value ends what is being drawn. A row that says where a box is already stays as it was typed,
# as one that is no box (yet). With a new picture, or without boxes, the annotator is made ready to draw one. After the
# boxes an empty row is there to type in, up to MOST rows. A table that says it all already is left alone: a new one
# takes away the cell that is being typed in.
TABLE_FOLLOWS = f"""(drawn, frame, table) => {{
  {_VALID}
  if (!drawn || !frame) return [asItIs, asItIs];
  const boxes = drawn.boxes ?? [];
  const picture = drawn.image?.url ?? drawn.image?.path;
  if (!boxes.length || picture !== window.shownPicture)
    document.querySelector('#picture [aria-label="Create box"]')?.click();
  window.shownPicture = picture;
  const places = boxes.map((box) => drawnSides(box));
  const isAt = (row, sides) => sidesOf(row).every((side, i) => Math.abs(side - sides[i]) < 0.5);
  const typed = rows.filter((row) => !isBox(sidesOf(row)) && !places.some((sides) => isAt(row, sides)));
  const boxed = rows.filter((row) => isBox(sidesOf(row)));
  const names = [...rows.map((row) => row[0]), ...boxes.map((box) => box.label)];
  const newName = () => {{
    const free = [...names, ""].map((_, at) => `box ${{at + 1}}`).find((name) => !names.includes(name));
    names.push(free);
    return free;
  }};
  const shown = boxes.map((box, number) => {{
    const same = boxed.find((row) => isAt(row, places[number]));
    if (same) return same;
    const [x0, y0, x1, y1] = places[number].map(Math.round);
    const label = box.label || (boxes.length === boxed.length && boxed[number][0]) || newName();
    return [label, Math.max(0, x0), Math.max(0, y0), Math.min(frame.width, x1), Math.min(frame.height, y1)];
  }});
  const filled = [...shown.filter((row) => isBox(sidesOf(row))), ...typed];
  const spare = filled.length < {MOST} && (boxes.length || !filled.length) ? {json.dumps(EMPTY)} : [];
  const data = [...filled, ...spare];
  const told = JSON.stringify(data) === JSON.stringify(table.data);
  const named = boxes.map((box, number) => ({{...box, label: shown[number][0] || ""}}));
  const kept = window.pointerHeld || boxes.every((box, number) =>
    (box.label || "") === named[number].label && placeOf(box.color) === placesOf(boxes)[number]);
  return [told ? asItIs : {{...table, data}}, kept ? asItIs : {{...drawn, boxes: coloured(named)}}];
}}"""

# (annotator, frame, table) -> annotator, left alone where it shows these boxes already: of a new value it tells, and
# the table that follows it would lose what is being typed meanwhile. A box has the colour that it had.
BOXES_FOLLOW = f"""(drawn, frame, table) => {{
  {_VALID}
  if (!drawn || !frame) return asItIs;
  const shown = drawn.boxes ?? [];
  const near = (sides, box) => ["xmin", "ymin", "xmax", "ymax"].every(
    (side, at) => Math.abs(sides[at] - box[side] / (box.scaleFactor || 1)) < frame.factor / 2
  );
  const given = rows.filter((row) => isBox(sidesOf(row)));
  const boxes = given.map((row, number) => {{
    const sides = sidesOf(row).map((side) => side * frame.factor), [xmin, ymin, xmax, ymax] = sides;
    const before = shown.find((box) => near(sides, box)) ?? (shown.length === given.length ? shown[number] : null);
    return {{xmin, ymin, xmax, ymax, label: row[0] || "", color: before?.color ?? ""}};
  }});
  const same = boxes.length === shown.length && boxes.every(
    ({{xmin, ymin, xmax, ymax}}, number) => near([xmin, ymin, xmax, ymax], shown[number])
  );
  return same ? asItIs : {{...drawn, boxes: coloured(boxes)}};
}}"""

# (annotator): the tabs of the answers take the colours of their boxes, in the order of the table; words have the rest.
COLOUR_TABS = f"""(drawn) => {{
  const table = null;
  {_VALID}
  const places = placesOf(drawn?.boxes ?? []);
  const all = [...places, ...colours.keys()].filter((place, at, each) => each.indexOf(place) === at);
  all.forEach((place, at) =>
    document.documentElement.style.setProperty(`--region-${{at}}`, `rgb(${{colours[place]}})`));
}}"""

# At the start: where the address names a run, the example that the page begins with is not shown before it. The
# annotator zooms with the wheel where a person wants to scroll the page; the wheel is kept from it unless Control is
# held.
START = """() => {
  if (new URLSearchParams(location.search).get("run")) document.documentElement.dataset.opening = "";
  const scroll = (event) => !event.ctrlKey && event.target.closest?.("#picture") && event.stopPropagation();
  document.addEventListener("wheel", scroll, {capture: true, passive: true});
  const hold = (event) => (window.pointerHeld = event.type === "pointerdown");
  for (const kind of ["pointerdown", "pointerup", "pointercancel"]) document.addEventListener(kind, hold, true);
  window.addEventListener("popstate", () => location.reload());
  window.copyLink = async (button) => {
    const run = button.dataset.copy, shown = new URLSearchParams(location.search).get("run") ?? "";
    const link = shown.includes(run) ? location.href : new URL(`?run=${run}`, location.href).href;
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = "Copied";
    } catch {  // a page that is not served over HTTPS may not write there: then the link is shown, to be copied by hand
      button.textContent = link;
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 4000);
  };
  document.addEventListener("keydown", (event) => {
    if (!document.querySelector(".opened") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [role=gridcell], [role=tab], [role=slider]")) return;
    if (event.key === "Escape") document.querySelector("#close")?.click();
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const ranking = window.opening?.closest(".ranking");
    if (!step || !ranking) return;
    const cards = [...ranking.querySelectorAll(".card[data-row]")];
    const next = cards[cards.findIndex((card) => card.dataset.row === window.opening.dataset.row) + step];
    if (!next) return;
    event.preventDefault();
    next.querySelector("button").click();
  });
}"""

# (annotator, frame, table) -> annotator, table
CLEAR = f"""(drawn, frame, table) =>
  [drawn && {{...drawn, boxes: []}}, {{...table, data: {json.dumps(EMPTY)}}}]"""

# (annotator, frame, words) -> annotator, note. A box that nothing could be answered about is taken away where it was
# drawn, with a sentence; the annotator puts a new box before the others.
REFUSE = f"""async (drawn, frame, chosen) => {{
  {_SIDES}
  const asItIs = {{__type__: "update"}};
  const mine = window.latestDrawn = {{}};
  do await new Promise((resolve) => setTimeout(resolve, 100)); while (window.pointerHeld);  // it is told of each move
  if (!drawn?.boxes || !frame?.seen || window.latestDrawn !== mine) return [asItIs, asItIs];
  const sidesOf = (box) => drawnSides(box).map(Math.round);  // as in the table
  const refused = (box) => whyNot(sidesOf(box));
  const good = drawn.boxes.filter((box) => !refused(box));
  let said = drawn.boxes.map(refused).find(Boolean) ?? "";
  const room = Math.max(0, frame.most - (chosen ?? []).length);
  if (good.length > room) {{
    said ||= `Up to ${{frame.most}} boxes and words can be asked about together: that box was one too many.`;
    good.splice(0, good.length - room);
  }}
  const placed = (boxes) => JSON.stringify(boxes.map(sidesOf).sort());
  if (!said && placed(drawn.boxes) === window.leftOver) return [asItIs, asItIs];  // the news that it was taken away
  window.leftOver = said ? placed(good) : null;
  return [said ? {{...drawn, boxes: good}} : asItIs, said ? `<p class="note error" role="alert">${{said}}</p>` : ""];
}}"""

# (ids of the runs that are shown) -> the address follows them; going back opens what was there.
FOLLOW_RUNS = """(ids) => {
  const to = new URL(location.href);
  if (ids) to.searchParams.set("run", ids);
  else to.searchParams.delete("run");
  const address = decodeURIComponent(to.href);
  if (address !== decodeURIComponent(location.href)) history.pushState(null, "", address);
}"""
