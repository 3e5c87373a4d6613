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
  const row = rowOf(event);
  if (row === undefined) return;
  document.querySelectorAll(".card.chosen").forEach((card) => card.classList.remove("chosen"));
  cards(row).forEach((card) => card.classList.add("chosen"));
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
SMOOTH = "behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'"
# Waits until there is something to read: a page without answers is too short to scroll that far.
TO_ANSWERS = f"""async () => {{
  for (let i = 0; i < 100 && !document.querySelector(".asked, .status[data-state=error]"); i++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  document.querySelector("#acts").scrollIntoView({{block: "start", {SMOOTH}}});
}}"""
# After a link: it opens at the answer.
TO_LINKED = f"async () => {{ if (new URLSearchParams(location.search).get('run')) await ({TO_ANSWERS})(); }}"
TO_OPENED = "() => document.querySelector('.opened')?.focus({preventScroll: true})"
# Back to the card that was opened.
CLOSED = """() => {
  document.querySelector(".panel .card.chosen button")?.focus({preventScroll: true});
  document.querySelectorAll(".card.chosen").forEach((card) => card.classList.remove("chosen"));
}"""

_VALID = f"""
const colours = {json.dumps([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS])};
const rows = (table?.data ?? []).filter((row) => row.some((value) => value !== null && value !== ""));
const sidesOf = (row) => row.slice(1).map((side) => (side === "" || side === null ? NaN : Number(side)));
const isBox = ([x0, y0, x1, y1]) =>
  0 <= x0 && x0 < x1 && x1 <= frame.width && 0 <= y0 && y0 < y1 && y1 <= frame.height;
const asItIs = {{__type__: "update"}};
"""

# (annotator, frame, table) -> table. A row that says where a box is already stays as it was typed. With a new picture,
# or without boxes, the annotator is made ready to draw one. After the boxes an empty row is there to type in, up to
# MOST rows. A table that says it all already is left alone: a new one takes away the cell that is being typed in.
TABLE_FOLLOWS = f"""(drawn, frame, table) => {{
  {_VALID}
  if (!drawn || !frame) return asItIs;
  const boxes = drawn.boxes ?? [];
  const picture = drawn.image?.url ?? drawn.image?.path;
  if (!boxes.length || picture !== window.shownPicture)
    document.querySelector('#picture [aria-label="Create box"]')?.click();
  window.shownPicture = picture;
  const typed = rows.filter((row) => !isBox(sidesOf(row)));
  const kept = rows.filter((row) => isBox(sidesOf(row)));
  const shown = boxes.map((box, number) => {{
    const scale = frame.factor * (box.scaleFactor || 1);
    const sides = [box.xmin, box.ymin, box.xmax, box.ymax].map((side) => side / scale);
    const same = kept.find((row) => sidesOf(row).every((side, i) => Math.abs(side - sides[i]) < 0.5));
    if (same) return same;
    const [x0, y0, x1, y1] = sides.map(Math.round);
    const label = box.label || kept[number]?.[0] || "";
    return [label, Math.max(0, x0), Math.max(0, y0), Math.min(frame.width, x1), Math.min(frame.height, y1)];
  }});
  const told = [...shown.filter((row) => isBox(sidesOf(row))), ...typed];
  const spare = told.length < {MOST} && (boxes.length || !told.length) ? {json.dumps(EMPTY)} : [];
  const data = [...told, ...spare];
  return JSON.stringify(data) === JSON.stringify(table.data) ? asItIs : {{...table, data}};
}}"""

# (annotator, frame, table) -> annotator, left alone where it shows these boxes already: of a new value it tells, and
# the table that follows it would lose what is being typed meanwhile.
_BOXES = f"""(drawn, frame, table, always) => {{
  {_VALID}
  if (!drawn || !frame) return asItIs;
  const boxes = rows.filter((row) => isBox(sidesOf(row))).map((row, number) => {{
    const [xmin, ymin, xmax, ymax] = sidesOf(row).map((side) => side * frame.factor);
    return {{xmin, ymin, xmax, ymax, label: row[0] || "", color: colours[number % colours.length]}};
  }});
  const shown = drawn.boxes ?? [];
  const same = !always && boxes.length === shown.length && boxes.every((box, number) => {{
    const {{scaleFactor: scale = 1, ...now}} = shown[number];
    const near = (side) => Math.abs(now[side] / (scale || 1) - box[side]) < frame.factor / 2;
    return ["xmin", "ymin", "xmax", "ymax"].every(near);
  }});
  return same ? asItIs : {{...drawn, boxes}};
}}"""

BOXES_FOLLOW = f"(drawn, frame, table) => ({_BOXES})(drawn, frame, table, false)"
RECOLOUR = f"(drawn, frame, table) => ({_BOXES})(drawn, frame, table, true)"  # by the order of the table

# At the start: the annotator zooms with the wheel where a person wants to scroll the page; the wheel is kept from it
# unless Control is held.
START = """() => {
  const scroll = (event) => !event.ctrlKey && event.target.closest?.("#picture") && event.stopPropagation();
  document.addEventListener("wheel", scroll, {capture: true, passive: true});
  const hold = (event) => (window.pointerHeld = event.type === "pointerdown");
  for (const kind of ["pointerdown", "pointerup", "pointercancel"]) document.addEventListener(kind, hold, true);
  window.addEventListener("popstate", () => location.reload());
}"""

# (annotator, frame, table) -> annotator, table
CLEAR = f"""(drawn, frame, table) =>
  [drawn && {{...drawn, boxes: []}}, {{...table, data: {json.dumps(EMPTY)}}}]"""

# (annotator, frame, words) -> annotator, note. A box that nothing could be answered about is taken away where it was
# drawn, with a sentence; the annotator puts a new box before the others.
REFUSE = """async (drawn, frame, chosen) => {
  const asItIs = {__type__: "update"};
  const mine = window.latestDrawn = {};
  do await new Promise((resolve) => setTimeout(resolve, 100)); while (window.pointerHeld);  // it is told of each move
  if (!drawn?.boxes || !frame?.seen || window.latestDrawn !== mine) return [asItIs, asItIs];
  const [left, top, right, bottom] = frame.seen;
  const refused = (box) => {
    const scale = frame.factor * (box.scaleFactor || 1);
    const [x0, y0, x1, y1] = [box.xmin, box.ymin, box.xmax, box.ymax].map((side) => side / scale);
    if (Math.min(x1 - x0, y1 - y0) < frame.least - 0.5)
      return `That box was too small: ${Math.ceil(frame.least)} px a side or more are accepted.`;
    if (x1 <= left || x0 >= right || y1 <= top || y0 >= bottom)
      return "That box was outside what the model sees, the middle square of the picture.";
    return "";
  };
  const good = drawn.boxes.filter((box) => !refused(box));
  let said = drawn.boxes.map(refused).find(Boolean) ?? "";
  const room = Math.max(0, frame.most - (chosen ?? []).length);
  if (good.length > room) {
    said ||= `Up to ${frame.most} boxes and words can be asked about together: that box was one too many.`;
    good.splice(0, good.length - room);
  }
  if (said) window.refusedAt = Date.now();
  else if (Date.now() - (window.refusedAt ?? 0) < 2000) return [asItIs, asItIs];  // the news that it was taken away
  return [said ? {...drawn, boxes: good} : asItIs, said ? `<p class="note error" role="alert">${said}</p>` : ""];
}"""

# (ids of the runs that are shown) -> the address follows them; going back opens what was there.
FOLLOW_RUNS = """(ids) => {
  const to = new URL(location.href);
  if (ids) to.searchParams.set("run", ids);
  else to.searchParams.delete("run");
  const address = decodeURIComponent(to.href);
  if (address !== decodeURIComponent(location.href)) history.pushState(null, "", address);
}"""
