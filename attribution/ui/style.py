"""How the page looks: a theme of system fonts and one accent colour, and what the theme cannot say."""

import gradio as gr

ACCENT = "#c2410c"  # orange 700
COLOURS = (ACCENT, "#1d4ed8", "#15803d", "#7e22ce")  # of regions, in their order; all dark enough for white text
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")

THEME = gr.themes.Base(
    primary_hue="orange",
    neutral_hue="stone",
    font=SANS,
    font_mono=MONO,
    radius_size="md",
    text_size="md",
    spacing_size="sm",
).set(
    body_background_fill="#fbfaf9",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    error_text_color=ACCENT,
    error_text_color_dark="#fdba74",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    button_primary_background_fill=ACCENT,
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark=ACCENT,
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
    button_secondary_background_fill="white",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_background_fill_dark="*neutral_800",
    button_secondary_background_fill_hover_dark="*neutral_700",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_600",
    button_border_width="1px",
    checkbox_border_color="*neutral_500",
    checkbox_border_color_dark="*neutral_400",
    button_primary_border_color=ACCENT,
    button_primary_border_color_dark=ACCENT,
)

CSS = """
.gradio-container { max-width: 1720px !important; margin: 0 auto !important; overflow: clip !important; }
:focus-visible { outline: 2px solid ACCENT !important; outline-offset: 2px; }
#intro h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .1rem; letter-spacing: -.01em; }
.html-container { padding: 0 !important; }
#intro p { max-width: 130ch; margin: 0; font-size: .9375rem; color: var(--body-text-color-subdued); }
#intro .about { color: var(--body-text-color); }
.note { margin: 0; font-size: .8125rem; line-height: 1.4; color: var(--body-text-color-subdued); }
.note.warning, .note.error, .status[data-state=error] p { color: var(--error-text-color); }
.missing { list-style: none; padding: 0; overflow-wrap: anywhere; columns: 15rem; }
.missing .off { opacity: .6; font-weight: 600; margin-right: .25rem; }
#picture-note { min-height: 1.2rem; }
[data-opening] :is(#studio, #run-status, #answers) { visibility: hidden; }
/* Gradio puts its own class after every comma, inside :has too, where it then matches nothing. */
#found:not(:has(p)), #maps:not(:has(p)):not(:has(img)), #marked:not(:has(p)) { display: none; }
.query { position: relative; }
.query img { display: block; width: 100%; margin: 0; border-radius: var(--radius-sm); }
.query svg { position: absolute; inset: 0; width: 100%; height: 100%; }

/* Finished runs, to open at once. */
#finished { align-items: end; gap: 1.5rem; }
#examples { flex: 3 1 32rem; min-width: 0 !important; }
#finished > .form { flex: 1 1 14rem !important; min-width: 0 !important; }
.label { margin: 0 0 .2rem !important; font-size: .8125rem; color: var(--body-text-color-subdued); }
.examples { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem; }
.examples button { display: grid; grid-template-columns: 3rem minmax(0, 1fr); gap: .6rem; align-items: center;
  margin: 0 !important; padding: .25rem; text-align: left; cursor: pointer;
  border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-md); background: var(--block-background-fill); color: inherit; font: inherit; }
.examples button:hover, .chips button:hover { border-color: ACCENT; }
.examples span { font-size: .75rem; line-height: 1.4; color: var(--body-text-color-subdued); overflow: hidden; }
.examples :is(b, i) { display: block; font-style: normal; }
.examples i { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.examples b { color: var(--body-text-color); font-weight: 600; }
.chips { display: flex; flex-wrap: wrap; gap: .25rem; }
.chips button { padding: .1rem .55rem; border: 1px solid var(--border-color-primary); border-radius: 999px;
  font: inherit; font-size: .8125rem; line-height: 1.35rem; cursor: pointer; color: inherit;
  background: var(--block-background-fill); }
.chips .any { font-weight: 600; }

/* What is asked, the picture, what matters in it: side by side where there is room, else in the order of use. */
#studio { display: grid; gap: .75rem 1.25rem; align-items: start;
  grid-template: "asking looking marking" auto / minmax(0, 10fr) minmax(0, 11fr) minmax(0, 10fr); }
#studio > * { gap: .6rem; }
#marking { grid-area: marking; min-width: 0 !important; }
#marking h2 { font-size: 1rem; margin: 0 0 .15rem; }
#asking { grid-area: asking; min-width: 0 !important; }
#looking { grid-area: looking; min-width: 0 !important; }
#seeding { align-items: end; flex-wrap: nowrap; gap: .5rem; }
#seeding button { min-height: 2.6rem; white-space: nowrap; padding: 0 .5rem; }
#seeding > .form { min-width: 8.75rem !important; }
#seed { flex: 1 1 8.75rem !important; min-width: 8.75rem !important; padding-inline: .5rem !important; }
#dice { flex: 0 1 3.5rem !important; min-width: 3.25rem !important; }
#generate { flex: 1 1 6.5rem !important; min-width: 6rem !important; }
#seeding input { padding-inline: .4rem; appearance: textfield; -moz-appearance: textfield; }
#seeding input::-webkit-inner-spin-button { display: none; }
#seeding #dice, #uploading button { font-weight: 500; font-size: .9375rem; }
#uploading { align-items: center; gap: .4rem .75rem; }
#uploading button { white-space: nowrap; }
#upload-note { flex: 1 1 16rem !important; min-width: 0 !important; }
#words label { border-radius: 999px; padding: .1rem .6rem; }
#finding { align-items: end; flex-wrap: nowrap; }

/* What starts and stops a run stays in sight while it works. */
#acts { align-items: center; padding: .4rem 0; background: var(--body-background-fill); z-index: 50; }
#acts:has(.status[data-state=running]), #acts:has(.status[data-state=waiting]) { position: sticky; top: 0; }
#acts button { flex-grow: 0 !important; min-height: 2.75rem; }
#attribute { flex-basis: 12rem !important; }
#stop { flex-basis: 6rem !important; }
#run-status { flex: 1 1 20rem !important; min-width: 0 !important; }
#how { align-items: start; }
#how > * { flex: 1 1 20rem !important; min-width: 0 !important; }

/* The picture: its place is kept until it has come, and while there is none; and it is never turned. */
#picture .image-container:has(.empty) { height: auto; aspect-ratio: 1; }
#looking:not(:has(#picture))::before { content: ""; width: 100%; aspect-ratio: 1; max-height: 512px;
  margin-bottom: 45px; }
#picture canvas[height="0"] { aspect-ratio: 1; max-height: 512px; }
#picture button[aria-label^=Rotate] { display: none; }

.status p { margin: 0 0 .3rem; min-height: 1.4em; line-height: 1.4; font-variant-numeric: tabular-nums; }
.status .bar { display: block; height: 4px; border-radius: 2px; background: var(--border-color-primary); }
.status .bar div { height: 100%; border-radius: 2px; background: ACCENT; }
.status[data-state=idle] p { color: var(--body-text-color-subdued); }
.status:is([data-state=idle], [data-state=asked]) .bar { visibility: hidden; }

/* Rankings: places of a fixed size, so that nothing moves while they settle. */
.panel h2 { font-size: 1.125rem; margin: 0; }
.panel h3 { font-size: 1rem; margin: 0; }
.asked { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: 1rem; align-items: start;
  margin: .75rem 0 1rem; }
.verdict { margin: .2rem 0 0; min-height: 2.7em; font-size: .875rem; line-height: 1.4; max-width: 110ch; }
.verdict strong { display: inline-block; margin-right: .35rem; padding: 0 .5rem; border-radius: 999px; color: white;
  background: #57534e; }
.verdict:is([data-grade^=clear], [data-grade^=likely]) strong { background: #15803d; }
.verdict[data-grade^="no "] strong { background: ACCENT; }
.kept { display: flex; flex-wrap: wrap; gap: .35rem .9rem; align-items: center; font-size: .8125rem;
  margin: .5rem 0 0; min-height: 1.75rem; }
.kept span { display: flex; gap: .6rem; }
.kept a { margin: 0 !important; padding: 0 !important; color: inherit; text-decoration: underline; }
.kept button { padding: .1rem .7rem; border: 1px solid var(--border-color-primary); border-radius: var(--radius-md);
  background: var(--block-background-fill); color: inherit; font: inherit; line-height: 1.5; cursor: pointer; }
.answer { display: grid; grid-template: "main others" auto "agreed others" 1fr / minmax(0, 3fr) minmax(0, 2fr);
  gap: .5rem 2rem; align-items: start; }
.answer.many { grid-template: "main agreed" auto "others others" auto / minmax(0, 3fr) minmax(0, 2fr); }
.main { grid-area: main; } .agreed { grid-area: agreed; }
.others { grid-area: others; display: grid; gap: .25rem 2rem; align-content: start; }
.many .others { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.ranking { min-width: 0; }
.ranking .note::first-letter { text-transform: uppercase; }
.answer > .main .note { min-height: 2.8em; }
.answer > .main .found { min-height: 4.2em; }
.cards { list-style: none; display: grid; gap: .6rem; margin: .4rem 0 1rem; padding: 0; }
.cards.large { grid-template-columns: repeat(5, minmax(0, 1fr)); }
.cards.small { grid-template-columns: repeat(10, minmax(2.2rem, 1fr)); gap: .25rem; overflow-x: auto; padding: 2px; }
.card { position: relative; margin: 0; min-width: 0; }
.card button { all: unset; display: block; width: 100%; cursor: pointer; box-sizing: border-box; }
.card button:focus-visible { outline: 2px solid ACCENT; outline-offset: 2px; }
.card img { display: block; width: 100%; aspect-ratio: 1; margin: 0;
  border-radius: var(--radius-sm); border: 1px solid var(--border-color-primary); box-sizing: border-box; }
.card.weak img, .card.weak .score { opacity: .4; }
.card.empty::before { content: ""; display: block; aspect-ratio: 1; box-sizing: border-box;
  border: 1px dashed var(--border-color-primary); border-radius: var(--radius-sm); }
.card:is(.marked, .chosen) img { outline: 3px solid ACCENT; outline-offset: -3px; opacity: 1; }
.card span { display: block; font-size: .75rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card .line { display: flex; gap: .35rem; align-items: baseline; margin-top: .2rem; min-height: 1.2rem;
  white-space: nowrap; }
.card .rank { color: var(--body-text-color-subdued); }
.card .score { font-weight: 600; font-size: .875rem; }
.card .interval { color: var(--body-text-color-subdued); font-size: .6875rem; min-height: 1.3em; }
.large .card .caption { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; height: 3.9em;
  overflow: hidden; }
.large .card.empty::after { content: ""; display: block; height: 6.5rem; }
.small .card .line { display: block; font-size: .6875rem; min-height: 2.1rem; }
.small .card.empty::after { content: ""; display: block; height: 2.3rem; }
.small .card span { font-size: .6875rem; }
.small .card .score { font-weight: 400; }
.card .thumb { position: relative; }
.card .badge { position: absolute; top: 3px; right: 3px; min-width: 1.1rem; padding: 0 .2rem; border-radius: .6rem;
  background: ACCENT; color: white; text-align: center; font-weight: 600; font-size: .6875rem; line-height: 1.1rem; }
.small .card .badge { top: 1px; right: 1px; min-width: .9rem; padding: 0 .1rem; font-size: .625rem;
  line-height: .9rem; }
.card .alike, .card .mirrored, .card .came { position: absolute; bottom: 3px; left: 3px; width: fit-content;
  padding: 0 .25rem; border-radius: .6rem; background: #1c1917; color: white; font-size: .625rem; line-height: 1rem; }
.card .mirrored { left: auto; right: 3px; opacity: .85; }
.card .came { bottom: auto; top: 3px; }
.agreement { font-size: .8125rem; border-collapse: collapse; width: 100%; }
.agreement caption { text-align: left; color: var(--body-text-color-subdued); padding-bottom: .25rem; }
.agreement td { white-space: nowrap; }
.agreement th, .agreement td, .opened th, .opened td { text-align: left !important; font-weight: 400 !important;
  border: 0 !important; padding: .1rem .75rem .1rem 0 !important; }
.agreement tr, .agreement, .opened table, .opened tr { border: 0 !important; }
#answers { margin-top: .25rem; }
#answers:not(:has(.asked)) { display: none; } /* Gradio keeps the button of the last tab that it hides */
#answers button[role=tab] { color: var(--body-text-color) !important; }
#answers button[role=tab]:nth-of-type(1) { border-top: 3px solid var(--region-0, C0); }
#answers button[role=tab]:nth-of-type(2) { border-top: 3px solid var(--region-1, C1); }
#answers button[role=tab]:nth-of-type(3) { border-top: 3px solid var(--region-2, C2); }
#answers button[role=tab]:nth-of-type(4) { border-top: 3px solid var(--region-3, C3); }
#answer-0 rect { stroke: var(--region-0, C0); }
#answer-1 rect { stroke: var(--region-1, C1); }
#answer-2 rect { stroke: var(--region-2, C2); }
#answer-3 rect { stroke: var(--region-3, C3); }
/* An opened training image lies at the lower edge while the rankings scroll behind it. */
#drawer { gap: .5rem; }
#drawer:has(.opened) { position: sticky; bottom: 0; z-index: 60; max-height: 62vh; overflow-y: auto; padding: .75rem 0;
  background: var(--body-background-fill); border-top: 2px solid ACCENT;
  box-shadow: 0 -8px 16px -12px rgb(0 0 0 / .4); }
#drawer:not(:has(.opened)) { display: none; }
#drawn { justify-content: end; position: sticky; bottom: -.75rem; padding: .5rem 0;
  background: var(--body-background-fill); }
#drawn button { flex: 0 0 auto !important; min-width: 7rem; padding-inline: .75rem; }
.opened { display: grid; grid-template-columns: 9rem minmax(0, 1fr) minmax(0, 22rem); gap: 1.25rem;
  font-size: .875rem; }
.opened td { font-variant-numeric: tabular-nums; }
.opened td:nth-child(2) { white-space: nowrap; }
.opened:focus { outline: none !important; }
.opened .keys { color: inherit; }
.opened img { width: 100%; border-radius: var(--radius-md); margin: 0; }
.opened h3 { font-size: 1rem; margin: 0; }
.opened h4 { font-size: .875rem; margin: 0 0 .25rem; }
.opened svg { max-width: 24rem; }
#maps { display: flex; gap: .75rem; flex-wrap: wrap; }
figure.word { margin: 0; width: 6rem; }
figure.word img, .forgotten img { width: 100%; margin: 0; border-radius: var(--radius-sm); }
figcaption { font-size: .75rem; color: var(--body-text-color-subdued); }
#forgetting, #removing, #removing-by { align-items: end; }
.checking h2 { font-size: 1rem; margin: 0 0 .15rem; }
#removal { margin-top: .75rem; }
.told { margin: .5rem 0 !important; font-size: .875rem; }
.forgotten { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1.25rem; }
.forgotten figure { margin: 0; max-width: 26rem; }
.forgotten figure > div { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem; }
.forgotten span { display: block; font-size: .75rem; color: var(--body-text-color-subdued); }
.forgotten b { display: block; color: var(--body-text-color); }
#proof { margin-top: 1rem; }
#proof h2 { font-size: 1.125rem; margin: 0 0 .2rem; }
#proof .note { max-width: 130ch; }
.proven { margin: .75rem 0 1rem; }
.proven .note { margin-top: .4rem; }
.drawn { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 15rem); gap: 1.25rem; }
.drawn figure { margin: 0; min-width: 0; }
.drawn img { display: block; width: 100%; margin: 0; border-radius: var(--radius-sm); }
.drawn .strip { margin: .3rem 0 .15rem; }
.drawn b, .drawn em { display: block; font-style: normal; color: var(--body-text-color); }
.drawn em { font-size: .9375rem; }
.drawn rect { stroke: ACCENT; }

footer .divider:last-child { display: none; }

#credits { margin-top: 1rem; padding-top: .75rem; border-top: 1px solid var(--border-color-primary); }
#credits p { margin: 0 0 .25rem; font-size: .8125rem; color: var(--body-text-color-subdued); max-width: 130ch; }
#credits a { margin: 0; padding: 0; color: inherit; text-decoration: underline; }

@media (max-width: 1100px) {
  #studio { grid-template: "asking looking" auto "marking marking" auto / minmax(0, 1fr) minmax(0, 1fr); }
  .answer, .answer.many { grid-template: "main" auto "others" auto "agreed" auto / minmax(0, 1fr); }
  .opened { grid-template-columns: 6rem minmax(0, 1fr) minmax(0, 18rem); }
  :is(#forgetting, #removing-by) > :first-child { flex-basis: 100% !important; }
  #settings :is(.row, .form) { flex-direction: column; align-items: stretch; }
}
@media (max-width: 760px) {
  #studio { grid-template: "asking" auto "looking" auto "marking" auto / minmax(0, 1fr); }
  #forgetting, #removing, #removing-by { flex-direction: column; align-items: stretch; }
  .examples { grid-template-columns: repeat(3, 82%); overflow-x: auto; padding: 2px; }
  #boxes .cell-wrap { padding-inline: 4px; }
  .chips { flex-wrap: nowrap; overflow-x: auto; padding: 2px; }
  .chips button { flex: none; }
  .chips .any { order: -1; }
  #acts { gap: .4rem; }
  #attribute, #stop { flex: 1 1 0 !important; }
  #run-status { flex: 1 0 100% !important; }
  .cards.large { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .cards.small { grid-template-columns: repeat(10, minmax(2.75rem, 1fr)); }
  .asked { grid-template-columns: 5rem minmax(0, 1fr); }
  .verdict { min-height: 7em; }
  .kept { min-height: 3.4rem; }
  .answer > .main .note { min-height: 5.6em; }
  .answer > .main .found { min-height: 8.4em; }
  .drawn { grid-auto-flow: row; grid-template-columns: 1fr 1fr; gap: .75rem; }
  #drawer:has(.opened) { max-height: 55vh; }
  .opened { grid-template-columns: 4rem minmax(0, 1fr); gap: .75rem; font-size: .8125rem; }
  .opened > div + div { grid-column: 1 / -1; }
  .opened h3 { font-size: .875rem; }
  .opened td, .opened th { padding-right: .4rem !important; }
}
@media (hover: none) { .opened .keys { display: none; } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""
for name, colour in {"ACCENT": ACCENT, **{f"C{place}": colour for place, colour in enumerate(COLOURS)}}.items():
    CSS = CSS.replace(name, colour)
