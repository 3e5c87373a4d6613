"""How the page looks: a theme of system fonts and one accent colour, and what the theme cannot say."""

import gradio as gr

ACCENT = "#c2410c"  # orange 700
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")

THEME = gr.themes.Base(
    primary_hue="orange", neutral_hue="stone", font=SANS, font_mono=MONO, radius_size="md", text_size="md"
).set(
    body_background_fill="#fbfaf9",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
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
    button_primary_border_color=ACCENT,
    button_primary_border_color_dark=ACCENT,
)

CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
:focus-visible { outline: 2px solid ACCENT !important; outline-offset: 2px; }
#intro h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 .25rem; letter-spacing: -.01em; }
.html-container { padding: 0 !important; }
#intro em { color: inherit; }
#intro p { max-width: 80ch; margin: 0 0 .75rem; color: var(--body-text-color-subdued); }
.note { margin: 0; font-size: .8125rem; line-height: 1.4; color: var(--body-text-color-subdued); }
.note.warning, .note.error, .status[data-state=error] p { color: ACCENT; }
.dark .note.warning, .dark .note.error, .dark .status[data-state=error] p { color: #fdba74; }
.missing { list-style: none; padding: 0; overflow-wrap: anywhere; }
.missing .off { opacity: .6; font-weight: 600; margin-right: .25rem; }
#picture-note { min-height: 2.3rem; }

/* Asking and acting on the left, the picture on the right; on a phone in the order of use. */
#studio { display: grid; gap: 1rem 1.5rem; grid-template: "asking looking" auto "acting looking" 1fr / 5fr 6fr; }
#asking { grid-area: asking; min-width: 0 !important; }
#looking { grid-area: looking; min-width: 0 !important; }
#acting { grid-area: acting; min-width: 0 !important; padding-top: 1rem;
  border-top: 1px solid var(--border-color-primary); }
#seeding, #box { align-items: end; flex-wrap: nowrap; }
#box span { font-size: .75rem; white-space: nowrap; }
#seeding button, #box button { min-height: 2.6rem; font-weight: 500; font-size: .9375rem; }

/* The picture: its place is kept while it is empty, its pixels stay sharp, and it is never turned. */
#picture { min-height: 568px; }
#picture .image-container:has(.empty) { height: 540px; }
#picture canvas { image-rendering: pixelated; }
#picture button[aria-label^=Rotate] { display: none; }

.status p { margin: 0 0 .4rem; min-height: 2.8em; line-height: 1.4; font-variant-numeric: tabular-nums; }
.status .bar { display: block; height: 4px; border-radius: 2px; background: var(--border-color-primary); }
.status .bar div { height: 100%; border-radius: 2px; background: ACCENT; transition: width .2s linear; }
.status[data-state=idle] p { color: var(--body-text-color-subdued); }
.status[data-state=idle] .bar { visibility: hidden; }

/* Rankings: five across, captions of a fixed height under the thumbnails, so that nothing moves while they settle. */
#answers { gap: 1.5rem; margin-top: .5rem; }
#answers h2 { font-size: 1.0625rem; margin: 0; }
.ranking { min-height: 516px; border: 0 !important; background: none !important; }
.ranking .grid-wrap { padding: 0; max-height: none !important; min-height: 0 !important; overflow: visible; }
.ranking .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .9rem .6rem; }
.ranking .thumbnail-lg { aspect-ratio: auto; height: auto; width: 100%; overflow: visible; border: 0;
  box-shadow: none; background: none; display: block; text-align: left; }
.ranking .thumbnail-lg img { aspect-ratio: 1; width: 100%; height: auto; border-radius: var(--radius-md);
  border: 1px solid var(--border-color-primary); }
.ranking .empty .icon { display: none; }
.ranking .empty::after { content: "The training images appear here."; font-size: .8125rem;
  color: var(--body-text-color-subdued); }
.ranking img { image-rendering: pixelated; }
.ranking .thumbnail-lg .caption-label { position: static; display: block; max-width: none; width: 100%; height: 11.6em;
  padding: .35rem 0 0; border: 0; background: none; color: var(--body-text-color); font-size: .75rem; line-height: 1.25;
  white-space: pre-line; overflow: hidden; text-overflow: clip; font-variant-numeric: tabular-nums; }
.ranking .caption-label::first-line { font-weight: 600; }

footer .divider:last-child { display: none; }
.ranking .preview { bottom: auto; height: 460px; }
.ranking .preview .media-button { height: 320px !important; flex: none; }
.ranking .preview .caption { display: block; flex: none; height: 4.5em; margin: 0; padding: .25rem .75rem 0;
  white-space: normal; text-align: center; font-weight: 400; line-height: 1.35; }

#credits { margin-top: 1rem; padding-top: .75rem; border-top: 1px solid var(--border-color-primary); }
#credits p { margin: 0 0 .25rem; font-size: .8125rem; color: var(--body-text-color-subdued); }
#credits a { margin: 0; padding: 0; color: inherit; text-decoration: underline; }

@media (max-width: 760px) {
  #studio { grid-template: "asking" auto "looking" auto "acting" auto / minmax(0, 1fr); }
  #picture { min-height: calc(100vw - 12px); }
  #picture .image-container:has(.empty) { height: calc(100vw - 40px); }
  #box { flex-wrap: wrap; }
  #seeding button { white-space: nowrap; }
  .ranking .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  .ranking { min-height: 1052px; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
""".replace("ACCENT", ACCENT)
